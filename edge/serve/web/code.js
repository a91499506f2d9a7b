// Blocks of code: a bar with the language and a copy button, colours from highlight.js once it is loaded.

import { button, h } from "./dom.js";
import { t } from "./i18n.js";
import { gate } from "./markdown.js";

const LANGUAGES = new Set(
  ("bash c cpp css diff dockerfile go ini java javascript json kotlin lua makefile markdown php python r ruby rust shell " +
    "sql swift typescript xml yaml").split(" "),
);
const ALSO = { "c++": "cpp", cs: "c", golang: "go", html: "xml", js: "javascript", jsx: "javascript", kt: "kotlin", md: "markdown" };
Object.assign(ALSO, { py: "python", python3: "python", rb: "ruby", rs: "rust", sh: "bash", svg: "xml", toml: "ini", ts: "typescript" });
Object.assign(ALSO, { tsx: "typescript", yml: "yaml", zsh: "bash", console: "shell", docker: "dockerfile", make: "makefile" });
const MAX_COLOURED = 20_000; // characters; beyond it colours cost more than they help

let core = null;
const ready = new Map(); // language -> promise; true when its grammar is there

function load(language) {
  if (!ready.has(language)) {
    const grammar = async () => {
      core ??= import("./vendor/highlight/core.min.js");
      const [{ default: hljs }, { default: rules }] = await Promise.all([
        core,
        import(`./vendor/highlight/languages/${language}.min.js`),
      ]);
      hljs.registerLanguage(language, rules);
      return hljs;
    };
    ready.set(language, grammar().then((hljs) => ready.set(language, hljs) && hljs));
    ready.get(language).catch(() => ready.delete(language));
  }
  return ready.get(language);
}

function colour(element, hljs, language) {
  const text = element.textContent;
  element.replaceChildren(gate(hljs.highlight(text, { language, ignoreIllegals: true }).value));
}

/** Give every block of code inside `root` its bar and, as soon as the grammar is there, its colours. */
export function dressCode(root) {
  for (const element of root.querySelectorAll("pre > code")) {
    const said = /language-(\S+)/.exec(element.className)?.[1] ?? "";
    const language = ALSO[said.toLowerCase()] ?? said.toLowerCase();
    const pre = element.parentElement;
    const block = h("div", { class: "code" });
    pre.replaceWith(block);
    pre.tabIndex = 0; // so that a long line can be scrolled by keyboard
    const copy = button("copy", t("copy_code"), () => copyText(element.textContent, copy));
    block.append(h("div", { class: "code-bar" }, h("span", {}, said || t("code")), copy), pre);
    if (!LANGUAGES.has(language) || element.textContent.length > MAX_COLOURED) continue;
    const hljs = load(language);
    if (hljs instanceof Promise) hljs.then((loaded) => colour(element, loaded, language)).catch(() => {});
    else colour(element, hljs, language);
  }
}

/** Put text on the clipboard and say so on the button. Plain http has no clipboard API: there a selection is copied. */
export async function copyText(text, shownOn) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { value: text, class: "offscreen", "aria-hidden": "true" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    shownOn.focus();
  }
  const before = shownOn.getAttribute("aria-label");
  shownOn.classList.add("is-done");
  shownOn.setAttribute("aria-label", t("copied"));
  setTimeout(() => {
    shownOn.classList.remove("is-done");
    shownOn.setAttribute("aria-label", before);
  }, 1500);
}
