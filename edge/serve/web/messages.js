// The messages of the branch that is shown. A message's view is made once and changed when its message changes.

import { copyText } from "./code.js";
import { button, h, icon } from "./dom.js";
import { duration, number, t, tokens } from "./i18n.js";
import { Renderer } from "./render.js";

const SHOWN_AT_FIRST = 40; // of a long conversation; the rest on demand
const FIGURES_EVERY_MS = 200;
const NEAR_BOTTOM_PX = 60;

/** actions: {edit, regenerate, resume, remove, select, answerNow, retryConnection}, each given a message. */
export class MessageList {
  #views = new Map(); // id -> view
  #nShown = SHOWN_AT_FIRST;
  #conversation = null;
  #isStuck = true; // at the bottom, and staying there while text comes
  #top = 0; // where the scroller was when last looked at
  #clock = null;
  #figuresAt = 0;

  constructor(root, scroller, latest, actions) {
    Object.assign(this, { root, scroller, latest, actions });
    scroller.addEventListener("scroll", () => this.#noteScroll(), { passive: true });
    latest.addEventListener("click", () => this.#stick());
    new ResizeObserver(() => this.#follow()).observe(scroller);
    new ResizeObserver(() => this.#conversation?.isBusy && this.#follow()).observe(root); // else the reader opened something
  }

  show(conversation) {
    this.#views.clear();
    this.root.replaceChildren();
    this.#conversation = conversation;
    this.#nShown = SHOWN_AT_FIRST;
    this.update("tree");
    this.#stick();
  }

  /** Something about the conversation changed; `what` as Conversation says it. */
  update(what) {
    const { reply } = this.#conversation;
    if (what === "piece" || what === "progress") {
      const view = this.#views.get(reply.message?.id);
      view?.text();
      if (what === "progress" || performance.now() - this.#figuresAt > FIGURES_EVERY_MS) this.#figures();
      return;
    }
    this.#arrange();
    if (what === "start" || what === "waiting") this.#stick();
    if (what === "end") this.#follow();
    clearInterval(this.#clock);
    if (this.#conversation.isBusy) this.#clock = setInterval(() => this.#figures(), 500);
  }

  startEdit(message) {
    this.#views.get(message.id)?.startEdit();
  }

  #figures() {
    this.#figuresAt = performance.now();
    this.#views.get(this.#conversation.reply?.message?.id)?.figures();
  }

  #arrange() {
    const conversation = this.#conversation;
    const path = conversation.path;
    const shown = path.slice(-this.#nShown);
    const ids = new Set(shown.map(({ id }) => id));
    for (const [id, view] of this.#views) {
      if (ids.has(id)) continue;
      view.element.remove();
      this.#views.delete(id);
    }
    const nodes = shown.map((message) => {
      let view = this.#views.get(message.id);
      if (!view) {
        const made = message.role === "user" ? QuestionView : AnswerView;
        view = new made(this.actions, () => this.#follow());
        this.#views.set(message.id, view);
      }
      const reply = conversation.reply?.message?.id === message.id ? conversation.reply : null;
      view.set(message, { reply, siblings: conversation.siblings(message), isLast: message === path.at(-1), isBusy: conversation.isBusy });
      return view.element;
    });
    const nHidden = path.length - shown.length;
    const more = () => {
      this.#nShown += 100;
      this.#arrange();
    };
    if (nHidden) nodes.unshift(h("button", { type: "button", class: "plain earlier", onclick: more }, t("earlier", { n: nHidden })));
    const old = [...this.root.children];
    if (nodes.length !== old.length || nodes.some((node, i) => node !== old[i])) this.root.replaceChildren(...nodes);
  }

  /** Any way up, however short, is the reader's: the page itself only goes down. Near the bottom the way down sticks again. */
  #noteScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const away = scrollHeight - scrollTop - clientHeight;
    const before = this.#top;
    this.#top = scrollTop;
    if (away <= 1 || (scrollTop > before && away < NEAR_BOTTOM_PX)) this.#setStuck(true);
    else if (scrollTop < before) this.#setStuck(false);
  }

  #setStuck(isStuck) {
    this.#isStuck = isStuck;
    this.latest.hidden = isStuck;
  }

  /** The text has grown. A scroll whose event is still to come counts already. */
  #follow() {
    this.#noteScroll();
    if (this.#isStuck) this.#toBottom();
  }

  #stick() {
    this.#setStuck(true);
    this.#toBottom();
  }

  #toBottom() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#top = this.scroller.scrollTop;
  }
}

class MessageView {
  constructor(actions, grown) {
    this.actions = actions;
    this.grown = grown;
    this.bar = h("div", { class: "actions" });
  }

  /** Show the message as it is now. What has not changed stays, and with it the focus that may be on it. */
  set(message, state) {
    const { siblings, isLast, isBusy, reply } = state;
    const isNew = this.message !== message;
    const facts = [message.content.length, message.finish_reason, siblings.map(({ id }) => id), isLast, isBusy, reply?.error];
    const shown = JSON.stringify([...facts, message.usage, message.attachments]);
    this.message = message;
    this.state = state;
    this.element.dataset.id = message.id;
    if (shown === this.shown && (!isNew || message.finish_reason !== null || message.role === "user")) return;
    this.shown = shown;
    this.update();
  }

  branches() {
    const { siblings } = this.state;
    if (siblings.length < 2) return [];
    const i = siblings.findIndex(({ id }) => id === this.message.id);
    const label = t("branch_of", { i: i + 1, n: siblings.length });
    const step = (by) => {
      const other = siblings[i + by];
      return button("chevron", `${label} ${by < 0 ? "←" : "→"}`, () => this.actions.select(other), {
        class: by < 0 ? "back" : null,
        disabled: !other || this.state.isBusy,
      });
    };
    return [h("span", { class: "branches" }, step(-1), h("span", { title: label }, `${i + 1}/${siblings.length}`), step(1))];
  }

  tool(name, key, action, isPossible = !this.state.isBusy) {
    return isPossible && button(name, t(key), action);
  }
}

class QuestionView extends MessageView {
  constructor(...given) {
    super(...given);
    this.text_ = h("div", { class: "question-text", dir: "auto" });
    this.files = h("ul", { class: "files" });
    this.element = h("article", { class: "message question", "aria-label": t("you") }, this.files, this.text_, this.bar);
  }

  update() {
    const { message, state } = this;
    this.text_.textContent = message.content;
    const files = message.attachments ?? [];
    this.files.hidden = !files.length;
    this.files.replaceChildren(
      ...files.map(({ name, n_tokens }) => h("li", { class: "chip" }, icon("attach"), h("span", {}, name), h("small", {}, tokens(n_tokens)))),
    );
    const copy = button("copy", t("copy"), () => copyText(message.content, copy));
    this.bar.replaceChildren(
      ...[
        ...this.branches(),
        copy,
        this.tool("edit", "edit", () => this.startEdit()),
        state.isLast && this.tool("retry", "regenerate", () => this.actions.regenerate(message)),
        this.tool("trash", "delete_message", () => this.actions.remove(message)),
      ].filter(Boolean),
    );
  }

  startEdit() {
    if (this.form || this.state.isBusy) return;
    const field = h("textarea", { value: this.message.content, "aria-label": t("edit"), dir: "auto" });
    const grow = () => {
      field.style.height = "auto";
      field.style.height = `${field.scrollHeight + 2}px`;
    };
    const close = () => {
      this.form.replaceWith(this.text_);
      this.form = null;
      this.bar.hidden = false;
      this.bar.querySelector("button")?.focus();
    };
    const send = () => {
      const text = field.value.trim();
      close();
      if (text && text !== this.message.content) this.actions.edit(this.message, text);
    };
    field.addEventListener("input", grow);
    field.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Escape") close();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
    });
    this.form = h(
      "form",
      {
        class: "edit",
        onsubmit: (event) => {
          event.preventDefault();
          send();
        },
      },
      field,
      h(
        "div",
        { class: "dialog-buttons" },
        h("button", { type: "button", class: "plain", onclick: close }, t("cancel")),
        h("button", { type: "submit", class: "primary" }, t("edit_send")),
      ),
    );
    this.text_.replaceWith(this.form);
    this.bar.hidden = true;
    grow();
    field.focus();
  }
}

class AnswerView extends MessageView {
  #shownState = null;

  constructor(...given) {
    super(...given);
    this.summary = h("span", { class: "thought-title" });
    this.count = h("span", { class: "thought-count" });
    this.thoughtText = h("div", { class: "prose thought-text", dir: "auto" });
    this.thought = h("details", { class: "thought", hidden: true }, h("summary", {}, icon("chevron"), this.summary, this.count), this.thoughtText);
    this.thought.addEventListener("toggle", () => this.text());
    this.answer = h("div", { class: "prose answer", dir: "auto" });
    this.progress = h("div", { class: "reading", hidden: true });
    this.notice = h("p", { class: "notice", hidden: true });
    this.element = h(
      "article",
      { class: "message reply", "aria-label": t("assistant") },
      this.thought,
      this.progress,
      this.answer,
      this.notice,
      this.bar,
    );
    this.answerRenderer = new Renderer(this.answer, this.grown);
    this.thoughtRenderer = new Renderer(this.thoughtText, this.grown);
  }

  get isRunning() {
    return this.message.finish_reason === null;
  }

  /** New text, perhaps. */
  text() {
    const { message, isRunning } = this;
    const isThinking = isRunning && !message.content;
    this.thought.hidden = !message.reasoning;
    if (this.thought.open && message.reasoning) this.thoughtRenderer.set(message.reasoning, !isThinking);
    this.answerRenderer.set(message.content, !isRunning);
    const state = isThinking ? (message.reasoning ? "thinking" : "waiting") : isRunning ? "writing" : "done";
    if (state === this.#shownState) return;
    this.#shownState = state;
    this.element.dataset.state = state;
    this.figures();
  }

  /** Times and counts, a few times a second. */
  figures() {
    const { message, isRunning, state } = this;
    const { reply } = state;
    const isThinking = isRunning && !message.content;
    const n = message.usage?.reasoning_tokens ?? reply?.nTokens.thought ?? 0;
    let seconds = reply?.thoughtMs !== null && reply?.thoughtMs !== undefined ? reply.thoughtMs / 1000 : null;
    if (isThinking && reply?.thoughtStartMs) seconds = (performance.now() - reply.thoughtStartMs) / 1000;
    else if (seconds === null && message.usage?.tokens_per_second) seconds = n / message.usage.tokens_per_second;
    if (isThinking) this.summary.textContent = t("thinking") + (seconds === null ? "…" : ` · ${duration(seconds)}`);
    else this.summary.textContent = seconds === null ? t("thought") : t("thought_for", { time: duration(seconds) });
    this.count.textContent = n ? tokens(n) : "";
    this.#reading(reply);
  }

  #reading(reply) {
    const isReading = this.isRunning && !this.message.content && !this.message.reasoning;
    this.progress.hidden = !isReading;
    if (!isReading) return this.progress.replaceChildren();
    const { progress } = reply ?? {};
    if (!progress?.n_prompt_tokens) {
      this.progress.replaceChildren(h("span", { class: "dots" }, t("waiting")));
      return;
    }
    const { n_done_tokens: n, n_prompt_tokens: total, seconds_left: left } = progress;
    const parts = [t("reading_of", { n: number(n), total: number(total) })];
    if (left !== null && left !== undefined) parts.push(t("reading_left", { time: duration(left) }));
    const label = t("reading");
    this.progress.replaceChildren(
      h("span", {}, label),
      h("progress", { max: String(total), value: n, "aria-label": label }),
      h("small", {}, parts.join(" · ")),
    );
  }

  update() {
    const { message, state, isRunning } = this;
    this.text();
    this.figures();
    const reason = { length: t("length"), cancelled: t("cancelled") }[message.finish_reason];
    const said = state.reply?.error?.message;
    this.notice.textContent = message.finish_reason === "error" ? t("engine_error", { message: said ?? message.finish_reason }) : reason;
    this.notice.hidden = !(reason || message.finish_reason === "error");
    this.notice.classList.toggle("is-error", message.finish_reason === "error");
    if (isRunning) return this.bar.replaceChildren();
    const copy = button("copy", t("copy"), () => copyText(message.content, copy));
    const isCut = ["length", "cancelled", "error"].includes(message.finish_reason);
    const { usage } = message;
    const figures = usage && [tokens(usage.completion_tokens), usage.tokens_per_second && t("tokens_per_second", { n: number(usage.tokens_per_second) })];
    this.bar.replaceChildren(
      ...[
        ...this.branches(),
        copy,
        this.tool("retry", "regenerate", () => this.actions.regenerate(message)),
        isCut && state.isLast && this.tool("play", "continue", () => this.actions.resume(message)),
        this.tool("trash", "delete_message", () => this.actions.remove(message)),
        figures && h("span", { class: "figures" }, figures.filter(Boolean).join(" · ")),
      ].filter(Boolean),
    );
  }
}
