// What the page says besides the conversation: toasts, the banner, questions that need an answer.

import { button, byId, h } from "./dom.js";
import { t } from "./i18n.js";

const TOAST_MS = 6000;
const UNDO_MS = 15000;

/** A line that goes away by itself. undo: {label, run} gives it a button and more time. */
export function toast(text, undo = null) {
  const close = () => line.remove();
  const line = h("div", { class: "toast" }, h("span", {}, text));
  if (undo) line.append(h("button", { type: "button", class: "link", onclick: () => close() || undo.run() }, undo.label));
  line.append(button("close", t("close"), close, { class: "quiet" }));
  byId("toasts").append(line);
  const timer = setTimeout(close, undo ? UNDO_MS : TOAST_MS);
  line.addEventListener("pointerenter", () => clearTimeout(timer));
}

export function announce(text) {
  byId("announcer").textContent = text;
}

const banners = new Map(); // reason -> {text, retry}

/** A line at the top that stays while its reason lasts; null takes it away. */
export function banner(reason, text, retry = null) {
  if (text) banners.set(reason, { text, retry });
  else banners.delete(reason);
  byId("banner").replaceChildren(
    ...[...banners].map(([name, { text, retry }]) =>
      h(
        "p",
        { class: `banner banner-${name}` },
        h("span", {}, text),
        retry && h("button", { type: "button", class: "link", onclick: retry }, t("retry")),
      ),
    ),
  );
}

/** Tell what went wrong with an action; what was there stays. */
export function tell(error) {
  if (error.status === 0) return toast(t("server_away"));
  if (error.status === undefined) throw error; // our own mistake: the console should have it
  return toast(t("api_refused", { message: error.message }));
}

function dialog(content, buttons) {
  return new Promise((resolve) => {
    const form = h("form", { method: "dialog" }, ...content, h("div", { class: "dialog-buttons" }, ...buttons));
    const box = h("dialog", { class: "dialog" }, form);
    box.addEventListener("close", () => {
      box.remove();
      resolve(box.returnValue);
    });
    document.body.append(box);
    box.showModal();
  });
}

const no = () => h("button", { type: "submit", value: "", class: "plain", formnovalidate: true }, t("cancel"));

/** Yes or no. */
export async function confirm(text, yes) {
  const accept = h("button", { type: "submit", value: "yes", class: "primary danger", autofocus: true }, yes);
  return (await dialog([h("p", {}, text)], [no(), accept])) === "yes";
}

/** One line of text, or null. */
export async function prompt(label, { value = "", text = null, type = "text", yes = t("save") } = {}) {
  const field = h("input", { type, value, required: true, autofocus: true, autocomplete: "off", maxlength: "200" });
  const accept = h("button", { type: "submit", value: "yes", class: "primary" }, yes);
  const said = await dialog([text && h("p", {}, text), h("label", {}, h("span", {}, label), field)].filter(Boolean), [accept, no()]);
  return said === "yes" ? field.value.trim() : null;
}
