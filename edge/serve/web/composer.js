// Where a question is written: it grows with its text, keeps drafts, takes files, and says when they do not fit.

import { api } from "./api.js";
import { button, byId, h, icon } from "./dom.js";
import { number, t, tokens } from "./i18n.js";
import { tell } from "./notices.js";
import { recall, remember } from "./storage.js";

const DRAFT_AFTER_MS = 200;
const isTouch = () => matchMedia("(pointer: coarse)").matches;

/** actions: send(text, attachments) resolves when the question is stored; stop(), answerNow(). */
export class Composer {
  #draft = null; // where what is typed is kept; nowhere before the first conversation is open
  #attachments = []; // {name, n_tokens, text} or {name, isReading} or {name, error}
  #isBusy = false;
  #isSending = false;
  #draftTimer = null;

  constructor(actions) {
    this.actions = actions;
    this.form = byId("composer");
    this.field = byId("question");
    this.sendButton = byId("send");
    this.answerNow = byId("answer-now");
    byId("attach").append(icon("attach"));
    byId("attach").addEventListener("click", () => byId("file").click());
    byId("file").addEventListener("change", (event) => {
      this.attach([...event.target.files]);
      event.target.value = "";
    });
    this.answerNow.append(icon("answer"), t("answer_now"));
    this.answerNow.addEventListener("click", () => actions.answerNow());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#isBusy) actions.stop();
      else this.#send();
    });
    this.field.addEventListener("input", () => this.#typed());
    this.field.addEventListener("keydown", (event) => this.#key(event));
    this.field.addEventListener("paste", (event) => this.#takeFiles(event, event.clipboardData));
    addEventListener("pagehide", () => this.#saveDraft());
    const main = byId("main");
    main.addEventListener("dragover", (event) => event.dataTransfer.types.includes("Files") && event.preventDefault());
    main.addEventListener("drop", (event) => this.#takeFiles(event, event.dataTransfer));
    this.setBusy(false);
  }

  /** Change to the draft of another conversation. */
  open(conversationId) {
    this.#saveDraft();
    this.#draft = `draft.${conversationId ?? "new"}`;
    this.#attachments = [];
    this.#show(recall(this.#draft) ?? "");
  }

  /** The conversation that is being written got its id: the draft moves along. */
  rename(conversationId) {
    remember(this.#draft, null);
    this.#draft = `draft.${conversationId}`;
  }

  fill(text) {
    this.#show(text);
    this.focus();
    this.field.setSelectionRange(text.length, text.length);
  }

  focus() {
    this.field.focus({ preventScroll: true });
  }

  setBusy(isBusy, { canAnswerNow = false } = {}) {
    this.#isBusy = isBusy;
    this.answerNow.hidden = !canAnswerNow;
    const [name, label] = isBusy ? ["stop", t("stop")] : ["send", t("send")];
    if (this.sendButton.dataset.does !== name) {
      this.sendButton.dataset.does = name;
      this.sendButton.replaceChildren(icon(name));
      this.sendButton.title = label;
      this.sendButton.setAttribute("aria-label", label);
    }
    this.#check();
  }

  async attach(files) {
    for (const file of files) {
      const entry = { name: file.name, isReading: true };
      this.#attachments.push(entry);
      this.#list();
      try {
        Object.assign(entry, await api.attach(file.name, await file.arrayBuffer()), { isReading: false });
        if (!entry.fits) entry.error = t("attachment_too_long", { name: file.name, n: number(entry.n_tokens), ctx: number(entry.n_ctx_tokens) });
      } catch (error) {
        if (error.status === undefined) throw error;
        Object.assign(entry, { isReading: false, error: error.status ? error.message : t("server_away") });
      }
      this.#list();
    }
  }

  #takeFiles(event, transfer) {
    const files = [...transfer.files];
    if (!files.length) return;
    event.preventDefault();
    this.attach(files);
  }

  #show(text) {
    this.field.value = text;
    this.#list();
    this.#grow();
  }

  #typed() {
    this.#grow();
    this.#check();
    this.#draftTimer ??= setTimeout(() => this.#saveDraft(), DRAFT_AFTER_MS);
  }

  #saveDraft() {
    clearTimeout(this.#draftTimer);
    this.#draftTimer = null;
    if (this.#draft) remember(this.#draft, this.field.value);
  }

  #key(event) {
    if (event.key !== "Enter" || event.isComposing || event.shiftKey || isTouch()) return;
    event.preventDefault();
    if (!this.#isBusy) this.#send();
  }

  #grow() {
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
  }

  /** Why sending is not possible right now; null when it is, "" when there is simply nothing to send. */
  #obstacle() {
    const broken = this.#attachments.find(({ error }) => error);
    if (broken) return broken.error;
    if (this.#attachments.some(({ isReading }) => isReading)) return "";
    const n = this.#attachments.reduce((sum, { n_tokens }) => sum + n_tokens, 0);
    const ctx = this.#attachments[0]?.n_ctx_tokens;
    if (n >= ctx) return t("attachments_too_long", { n: number(n), ctx: number(ctx) });
    return this.field.value.trim() ? null : "";
  }

  #check() {
    const obstacle = this.#obstacle();
    byId("composer-hint").textContent = obstacle ?? "";
    this.sendButton.disabled = this.#isSending || (!this.#isBusy && obstacle !== null);
  }

  #list() {
    const list = byId("attachments");
    list.hidden = !this.#attachments.length;
    list.replaceChildren(
      ...this.#attachments.map((entry) => {
        const drop = () => {
          this.#attachments = this.#attachments.filter((other) => other !== entry);
          this.#list();
          this.focus();
        };
        const note = entry.isReading ? "…" : entry.n_tokens === undefined ? "" : tokens(entry.n_tokens);
        return h(
          "li",
          { class: entry.error ? "chip is-error" : "chip" },
          icon("attach"),
          h("span", {}, entry.name),
          h("small", {}, note),
          button("close", t("remove", { name: entry.name }), drop),
        );
      }),
    );
    this.#check();
  }

  async #send() {
    if (this.#isSending || this.#obstacle() !== null) return;
    const text = this.field.value.trim();
    const attachments = this.#attachments;
    const draft = this.#draft;
    this.#saveDraft();
    this.#isSending = true;
    this.#check();
    try {
      await this.actions.send(
        text,
        attachments.map(({ name, text }) => ({ name, text })),
      );
      remember(draft, null);
      if (this.field.value.trim() === text) {
        this.#attachments = [];
        this.#show("");
        this.#saveDraft();
      }
    } catch (error) {
      if (error.code === "connection_lost") byId("composer-hint").textContent = t("lost_before");
      else tell(error); // the draft is still there
    } finally {
      this.#isSending = false;
      this.#check();
    }
  }
}
