// A text that grows, as nodes. Finished blocks are rendered once; only the last block is rendered again, and never so
// often that the page gets no rest: the next time waits three times as long as the last one took.

import { dressCode } from "./code.js";
import { h } from "./dom.js";
import { drawMath, loadMath, markdown, needsMath, nodesOf } from "./markdown.js";

const MIN_PAUSE_MS = 50;
const REST = 3;

/** Renders into `element`; calls rendered() after each change. */
export class Renderer {
  #source = "";
  #isFinal = false;
  #nDone = 0; // characters whose blocks are finished
  #env = { isGrowing: true }; // markdown-it keeps link references here
  #tail = document.createComment("tail"); // what follows it is rendered again
  #timer = null;
  #shown = null;
  #notBefore = 0;

  constructor(element, rendered = () => {}) {
    this.element = element;
    this.rendered = rendered;
    element.append(this.#tail);
  }

  /** The text so far. A text that does not go on from the last one is rendered anew. */
  set(source, isFinal) {
    if (source === this.#shown && isFinal === this.#isFinal) return;
    if (source.includes("\r")) source = source.replace(/\r\n?/g, "\n"); // as markdown-it counts lines
    if (!source.startsWith(this.#source.slice(0, this.#nDone))) this.#restart();
    this.#source = source;
    this.#isFinal = isFinal;
    if (isFinal) this.#render();
    else this.#timer ??= setTimeout(() => this.#render(), Math.max(0, this.#notBefore - performance.now()));
  }

  /** Render now what waits. */
  flush() {
    if (this.#timer !== null) this.#render();
  }

  #restart() {
    this.#nDone = 0;
    this.#env = { isGrowing: true };
    this.element.replaceChildren(this.#tail);
  }

  #render() {
    clearTimeout(this.#timer);
    this.#timer = null;
    const start = performance.now();
    this.#env.isGrowing = !this.#isFinal;
    this.#shown = this.#source;
    const open = this.#source.slice(this.#nDone);
    const text = this.#isFinal ? open : steady(open);
    const tokens = markdown.parse(text, this.#env);
    const last = this.#isFinal ? tokens.length : tokens.findLastIndex(({ level, nesting }) => level === 0 && nesting >= 0);
    this.#dropTail();
    if (last > 0) {
      this.#tail.before(this.#dressed(tokens.slice(0, last)));
      this.#nDone = this.#isFinal ? this.#source.length : this.#nDone + lineStart(text, tokens[last].map[0]);
    }
    if (!this.#isFinal && last >= 0) this.element.append(this.#dressed(tokens.slice(last)));
    if (this.#isFinal) this.#nDone = 0; // an answer that is continued starts again
    this.#awaitMath();
    if (this.#isFinal) this.#letScroll();
    this.rendered();
    this.#notBefore = performance.now() + Math.max(MIN_PAUSE_MS, REST * (performance.now() - start));
  }

  #dressed(tokens) {
    const nodes = nodesOf(tokens, this.#env);
    drawMath(nodes);
    dressCode(nodes);
    for (const table of nodes.querySelectorAll("table")) {
      const frame = h("div", { class: "table", tabindex: "0" });
      table.replaceWith(frame);
      frame.append(table);
    }
    return nodes;
  }

  /** A formula wider than the page can be scrolled by keyboard. */
  #letScroll() {
    for (const box of this.element.querySelectorAll(".katex-display")) if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }

  #dropTail() {
    if (this.#nDone === 0) this.element.replaceChildren(this.#tail);
    while (this.#tail.nextSibling) this.#tail.nextSibling.remove();
  }

  #awaitMath() {
    if (!needsMath(this.element)) return;
    loadMath().then(
      () => {
        drawMath(this.element);
        this.#letScroll();
        this.rendered();
      },
      () => {}, // without KaTeX the formulas stay as written
    );
  }
}

/** Where line n of a text begins. */
function lineStart(text, n) {
  let at = 0;
  while (n-- > 0) at = text.indexOf("\n", at) + 1;
  return at;
}

/** A growing text without what would jump: half a marker on its last line goes, open emphasis and code are closed. */
function steady(text) {
  const fences = text.match(/^ {0,3}(?:`{3,}|~{3,})/gm) ?? [];
  if (fences.length % 2) return text; // inside code every character counts
  const kept = text
    .replace(/(?:^|\n)[ \t]*(?:[-=*_+#>|]+|\d{1,9}[.)]|`{1,2}|~{1,2}|[-*+] *[*_]{1,2})[ \t]*$/, "")
    .replace(/(?:\\[a-zA-Z]*(?:\{[a-zA-Z]*\*?)?|(?:^|\s)\$|[*_]+)$/, "");
  const plain = kept
    .slice(kept.lastIndexOf("\n\n") + 1)
    .replace(/\\\[[^]*?(?:\\\]|$)|\\\([^]*?(?:\\\)|$)|\$\$[^]*?(?:\$\$|$)|\$[^$\n]+\$/g, "") // mathematics is no emphasis
    .replace(/`[^`\n]+`/g, "")
    .replace(/^[ \t]*[-*+] /gm, "");
  if (plain.includes("`")) return `${kept}\``;
  const isBold = (plain.match(/\*\*/g) ?? []).length % 2;
  const isItalic = (plain.replaceAll("**", "").match(/\*(?=\S)|(?<=\S)\*/g) ?? []).length % 2;
  return isBold || isItalic ? kept.trimEnd() + "*".repeat(2 * isBold + isItalic) : kept;
}
