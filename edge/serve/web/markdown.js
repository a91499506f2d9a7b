// Markdown and mathematics to safe nodes. Everything a model writes passes here; DOMPurify has the last word.

import MarkdownIt from "./vendor/markdown-it/markdown-it.esm.min.mjs";
import "./vendor/dompurify/purify.min.js";

const purify = globalThis.DOMPurify;
const TEXT_GATE = {
  ALLOWED_TAGS: ["a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p"]
    .concat(["pre", "s", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"]),
  ALLOWED_ATTR: ["class", "href", "start"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  RETURN_DOM_FRAGMENT: true,
};
// what KaTeX draws with: no links, no images, no form, no style sheet
const MATH_GATE = {
  USE_PROFILES: { html: true, mathMl: true, svg: true },
  ADD_TAGS: ["semantics", "annotation"],
  FORBID_TAGS: ["a", "img", "style", "form", "input", "button", "video", "audio", "image", "use"],
  FORBID_ATTR: ["href", "src", "srcset", "id", "name"],
  IN_PLACE: true,
};

export const markdown = new MarkdownIt({ html: false, linkify: true, breaks: false });
markdown.linkify.set({ fuzzyLink: false, fuzzyEmail: false });

// An image would be a request: it becomes a link that a person may follow.
markdown.renderer.rules.image = (tokens, index) => {
  const { content, attrs } = tokens[index];
  const address = markdown.utils.escapeHtml(attrs.find(([name]) => name === "src")[1]);
  return `<a href="${address}">${markdown.utils.escapeHtml(content || address)}</a>`;
};
// The stylesheet aligns by class: a style attribute would need a weaker policy.
for (const cell of ["td_open", "th_open"]) {
  markdown.renderer.rules[cell] = (tokens, index, options, env, self) => {
    const style = tokens[index].attrGet("style");
    tokens[index].attrs = style ? [["class", style.replace("text-align:", "to-")]] : null;
    return self.renderToken(tokens, index, options);
  };
}

// ---- mathematics: \( \), \[ \], $ $, $$ $$, \begin{…}, and \boxed{…} that stands in plain text

const ENVIRONMENTS = "(?:align|equation|gather|cases|matrix|pmatrix|bmatrix|vmatrix|array|aligned|split|multline|alignat)\\*?";
const BEGIN = new RegExp(`^\\\\begin\\{(${ENVIRONMENTS})\\}`);
const MAX_HALF_DOLLAR = 80; // characters; a longer one is a price, not a formula

/** Where the group that opens at `open` closes; -1 when it does not. */
function closingBrace(text, open) {
  let depth = 0;
  for (let i = open; i < text.length; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "{") depth++;
    else if (text[i] === "}" && --depth === 0) return i;
  }
  return -1;
}

/** Where a delimiter stands unescaped, from `from` on; -1 when nowhere. */
function find(text, delimiter, from) {
  for (let at = text.indexOf(delimiter, from); at >= 0; at = text.indexOf(delimiter, at + 1)) {
    let n = 0;
    while (text[at - 1 - n] === "\\") n++;
    if (n % 2 === 0) return at;
  }
  return -1;
}

/** The formula that begins at `at`: {tex, isBlock, end}; end -1 while its close is missing; null when there is none. */
function formulaAt(text, at) {
  const head = text.slice(at, at + 2);
  for (const [open, close, isBlock] of [["\\[", "\\]", true], ["\\(", "\\)", false], ["$$", "$$", true]]) {
    if (head !== open) continue;
    const end = find(text, close, at + 2);
    return { tex: text.slice(at + 2, end < 0 ? undefined : end), isBlock, end: end < 0 ? -1 : end + 2 };
  }
  if (text[at] === "$") {
    if (!/^\$[^\s$]/.test(text.slice(at, at + 2))) return null;
    const end = find(text, "$", at + 1);
    if (end >= 0) {
      const tex = text.slice(at + 1, end);
      const isPrice = /\s$/.test(tex) || /^\d/.test(text.slice(end + 1)); // "$5 and $6"
      return isPrice || tex.includes("\n\n") ? null : { tex, isBlock: false, end: end + 1 };
    }
    const rest = text.slice(at + 1);
    return rest.length > MAX_HALF_DOLLAR || /^\d/.test(rest) || rest.includes("\n") ? null : { tex: rest, isBlock: false, end: -1 };
  }
  if (text.startsWith("\\boxed{", at)) {
    const close = closingBrace(text, at + 6);
    return { tex: text.slice(at, close < 0 ? undefined : close + 1), isBlock: false, end: close < 0 ? -1 : close + 1 };
  }
  const environment = head === "\\b" && BEGIN.exec(text.slice(at, at + 40));
  if (!environment) return null;
  const close = `\\end{${environment[1]}}`;
  const end = text.indexOf(close, at);
  return { tex: text.slice(at, end < 0 ? undefined : end + close.length), isBlock: true, end: end < 0 ? -1 : end + close.length };
}

function pushMath(state, formula) {
  const token = state.push("math", "", 0);
  token.content = formula.tex;
  token.info = formula.end < 0 ? "pending" : formula.isBlock ? "block" : "inline";
  return token;
}

markdown.inline.ruler.before("escape", "math", (state, silent) => {
  const code = state.src.charCodeAt(state.pos);
  if (code !== 0x24 && code !== 0x5c) return false; // $ or backslash
  const formula = formulaAt(state.src, state.pos);
  if (!formula || (formula.end < 0 && !state.env.isGrowing)) return false;
  if (!silent) pushMath(state, formula);
  state.pos = formula.end < 0 ? state.posMax : formula.end;
  return true;
});

// A formula that begins a line may run over blank lines, and may hold what looks like Markdown.
markdown.block.ruler.before(
  "fence",
  "math",
  (state, startLine, endLine, silent) => {
    const start = state.bMarks[startLine] + state.tShift[startLine];
    if (state.sCount[startLine] - state.blkIndent >= 4) return false;
    if (!/^(?:\\\[|\$\$|\\begin\{)/.test(state.src.slice(start, start + 8))) return false;
    const text = state.getLines(startLine, endLine, state.blkIndent, false).trimStart();
    const formula = formulaAt(text, 0);
    if (!formula || (formula.end < 0 && !state.env.isGrowing)) return false;
    const after = formula.end < 0 ? "" : text.slice(formula.end).split("\n", 1)[0].trim();
    if (after && !/^[.,;:。，；]$/.test(after)) return false; // a sentence goes on: the inline rule has it
    if (silent) return true;
    const nLines = formula.end < 0 ? endLine - startLine : text.slice(0, formula.end).split("\n").length;
    state.line = startLine + nLines;
    const token = pushMath(state, { ...formula, tex: formula.tex + after });
    token.block = true;
    token.map = [startLine, state.line];
    return true;
  },
  { alt: ["paragraph", "reference", "blockquote", "list"] },
);

markdown.renderer.rules.math = (tokens, index) => {
  const { content, info, block } = tokens[index];
  const span = `<span class="math math-${info}">${markdown.utils.escapeHtml(content)}</span>`;
  return block ? `<p>${span}</p>\n` : span;
};

// ---- KaTeX comes when the first formula does

const MACROS = {
  // KaTeX writes a style attribute for these two, which the page's policy forbids
  "\\pmb": "\\boldsymbol{#1}",
  "\\fcolorbox": "\\@secondoftwo{#1}{\\colorbox{#2}{#3}}",
};
const drawn = new Map(); // TeX -> node, so that a growing paragraph draws each formula once
const MAX_DRAWN = 400;
let katex = null;
let loading = null;

export function loadMath() {
  loading ??= new Promise((resolve, reject) => {
    const sheet = document.createElement("link");
    sheet.rel = "stylesheet";
    sheet.href = new URL("vendor/katex/katex.min.css", import.meta.url).href;
    sheet.onload = resolve;
    sheet.onerror = () => reject(new Error("katex.min.css does not load"));
    document.head.append(sheet);
  }).then(async () => {
    await import("./vendor/katex/katex.min.js");
    katex = globalThis.katex;
  });
  loading.catch(() => (loading = null)); // asked for again with the next formula
  return loading;
}

function draw(tex, isBlock) {
  const key = (isBlock ? "b" : "i") + tex;
  if (!drawn.has(key)) {
    const node = document.createElement("span");
    try {
      const options = { displayMode: isBlock, throwOnError: true, strict: "ignore", trust: false };
      katex.render(tex, node, { ...options, maxSize: 20, maxExpand: 300, macros: { ...MACROS } });
      purify.sanitize(node, MATH_GATE);
    } catch {
      node.textContent = tex; // not TeX after all: shown as it was written
      node.className = "math-source";
    }
    if (drawn.size >= MAX_DRAWN) drawn.delete(drawn.keys().next().value);
    drawn.set(key, node);
  }
  return drawn.get(key).cloneNode(true);
}

/** Replace the formulas inside `root` by drawings; those that are not closed yet stay as written. */
export function drawMath(root) {
  for (const span of root.querySelectorAll("span.math")) {
    if (span.classList.contains("math-pending")) continue;
    if (katex) span.replaceWith(draw(span.textContent, span.classList.contains("math-block")));
  }
}

export const needsMath = (root) => !katex && root.querySelector("span.math") !== null;

// ---- tokens to nodes

/** HTML to nodes that may enter the page. */
export function gate(html) {
  const fragment = purify.sanitize(html, TEXT_GATE);
  for (const link of fragment.querySelectorAll("a")) {
    if (!link.hasAttribute("href")) {
      link.replaceWith(...link.childNodes); // its address was refused
      continue;
    }
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
    link.title = link.href;
  }
  return fragment;
}

export const nodesOf = (tokens, env) => gate(markdown.renderer.render(tokens, markdown.options, env));
