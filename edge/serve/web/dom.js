// Elements without a framework: h() makes one, icon() draws one. Text always enters as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

// 24 x 24, strokes only
const ICONS = {
  answer: "M5 12h13M13 6l6 6-6 6",
  attach: "M20 11.5l-8.2 8.2a5 5 0 0 1-7.1-7.1l8.6-8.5a3.3 3.3 0 0 1 4.7 4.7l-8.5 8.5a1.7 1.7 0 0 1-2.4-2.4l7.8-7.7",
  board: "M7 7h10v10H7zM10 3v4M14 3v4M10 17v4M14 17v4M3 10h4M3 14h4M17 10h4M17 14h4",
  check: "M5 12.5l4.5 4.5L19 7.5",
  chevron: "M9 6l6 6-6 6",
  clear: "M4 20h16M8 20l-3.5-3.5a2 2 0 0 1 0-2.8L13.7 4.5a2 2 0 0 1 2.8 0l3 3a2 2 0 0 1 0 2.8L10 20",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h11v11H9zM15 9V4H4v11h5",
  down: "M12 5v14M6 13l6 6 6-6",
  edit: "M4 20h4L19 9a2.8 2.8 0 0 0-4-4L4 16zM13.5 6.5l4 4",
  export: "M12 15V3M7.5 7.5L12 3l4.5 4.5M5 13v7h14v-7",
  folder: "M3 6h6l2 2.5h10V19H3z",
  import: "M12 3v12M7.5 10.5L12 15l4.5-4.5M5 15v5h14v-5",
  menu: "M4 7h16M4 12h16M4 17h16",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  new: "M12 5v14M5 12h14",
  pin: "M9 3h6l-1 6 4 4H6l4-4zM12 13v8",
  play: "M8 5l11 7-11 7z",
  retry: "M19 12a7 7 0 1 1-2.2-5.1M19 3v4.5h-4.5",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16.2 16.2L20.5 20.5",
  send: "M12 19V5M6 11l6-6 6 6",
  settings: "M4 7h9M19 7h1M4 17h1M11 17h9M16 4.5v5M8 14.5v5",
  stop: "M7 7h10v10H7z",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10.5 11v5M13.5 11v5",
};

/** An element. Props: on… listeners, class, boolean and string attributes; null and false leave one out. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: `icon icon-${name}`, "aria-hidden": "true" }))
    svg.setAttribute(key, value);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button that shows an icon and says its name; with `text` it shows both. */
export function button(name, label, onclick, { text = false, ...props } = {}) {
  const named = text ? {} : { "aria-label": label, title: label };
  return h("button", { type: "button", ...named, onclick, ...props }, icon(name), text && h("span", {}, label));
}

export const byId = (id) => document.getElementById(id);

/** Close a popover, menu or drawer when the next click or Escape is not for it. Returns what undoes that. */
export function onDismiss(element, close) {
  const click = (event) => element.contains(event.target) || close();
  const key = (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    close();
  };
  const later = setTimeout(() => document.addEventListener("click", click), 0);
  document.addEventListener("keydown", key, true);
  return () => {
    clearTimeout(later);
    document.removeEventListener("click", click);
    document.removeEventListener("keydown", key, true);
  };
}

let opened = null; // the one menu that is open

/** A menu under its button. items: [icon, label, action, {danger}], null is a line. */
export function menu(anchor, items) {
  if (opened?.anchor === anchor) return opened.close();
  opened?.close();
  const close = (focus = true) => {
    release();
    list.remove();
    anchor.setAttribute("aria-expanded", "false");
    opened = null;
    if (focus) anchor.focus();
  };
  const run = (action) => () => {
    close();
    action();
  };
  const list = h(
    "div",
    { role: "menu", class: "menu" },
    items.map((item) =>
      item === null
        ? h("hr", { role: "separator" })
        : button(item[0], item[1], run(item[2]), { text: true, role: "menuitem", class: item[3]?.danger ? "danger" : null }),
    ),
  );
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Tab") close();
    if (!step) return;
    event.preventDefault();
    const buttons = [...list.querySelectorAll("button")];
    buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length].focus();
  });
  document.body.append(list);
  place(list, anchor);
  anchor.setAttribute("aria-expanded", "true");
  const release = onDismiss(list, close);
  opened = { anchor, close };
  list.querySelector("button").focus();
}

/** Put a floating box beside its anchor, inside the window. */
export function place(box, anchor) {
  const at = anchor.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = box;
  const top = at.bottom + 6 + height > innerHeight ? Math.max(8, at.top - height - 6) : at.bottom + 6;
  box.style.top = `${top}px`;
  box.style.left = `${Math.max(8, Math.min(at.right - width, innerWidth - width - 8))}px`;
}
