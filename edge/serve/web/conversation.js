// One conversation: a tree of messages, the branch that is shown, and the reply that is being written. Knows no DOM.

import { ApiError, api } from "./api.js";
import { Reply } from "./reply.js";

const EMPTY = { id: null, title: "", folder: null, pinned: false, leaf: null, settings: {}, n_messages: 0, revision: 0 };

/** Calls changed(what, conversation): "tree", "meta", or what its Reply says. */
export class Conversation {
  meta = { ...EMPTY };
  messages = new Map(); // id -> message, every branch
  leaf = null; // id of the last message shown
  reply = null; // the Reply that is being written, or was last

  constructor(changed = () => {}) {
    this.changed = (what) => changed(what, this);
  }

  static async open(id, changed) {
    const conversation = new Conversation(changed);
    conversation.#adopt(await api.read(id));
    return conversation;
  }

  get id() {
    return this.meta.id;
  }

  get isBusy() {
    return Boolean(this.reply?.isRunning);
  }

  /** Messages from the first to the leaf. */
  get path() {
    const path = [];
    for (let message = this.messages.get(this.leaf); message; message = this.messages.get(message.parent)) path.unshift(message);
    return path;
  }

  /** Messages with the same parent, oldest first: the branches at this point. */
  siblings(message) {
    return this.#children(message.parent).filter(({ role }) => role === message.role);
  }

  /** {n_used_tokens, n_ctx_tokens?} after the last finished reply, as far as it is known. */
  get context() {
    if (this.reply?.context && this.reply.message?.id === this.leaf) return this.reply.context;
    const usage = this.path.findLast(({ usage }) => usage)?.usage;
    return { n_used_tokens: usage ? usage.prompt_tokens + usage.completion_tokens : 0 };
  }

  /** Ask a question under `parent`; attachments are [{name, text}]. Settles when the server has stored it; raises ApiError when it has not. */
  async send(content, attachments = [], parent = this.leaf) {
    if (!this.id) {
      const { settings, folder } = this.meta;
      this.meta = await api.create({ settings, folder });
    }
    return this.#ask({ content, parent, ...(attachments.length && { attachments }) });
  }

  /** The question again, changed, on a branch of its own; its attachments go along. */
  edit(message, content) {
    const attachments = (message.attachments ?? []).map(({ name }) => ({ name, from: message.id }));
    return this.send(content, attachments, message.parent);
  }

  /** Another answer to the same question. */
  regenerate(message) {
    return this.#ask({ answer_to: message.role === "user" ? message.id : message.parent });
  }

  /** Go on where an answer was cut. */
  resume(message) {
    return this.#ask({ continue: message.id });
  }

  control(action) {
    return api.control(this.id, this.reply.message.id, action);
  }

  /** Show the branch that this message is on. */
  async select(message) {
    this.leaf = this.#newestBelow(message.id);
    this.changed("tree");
    this.meta = await api.change(this.id, { leaf: this.leaf });
  }

  /** Remove a message and what follows it. */
  async removeMessage(message) {
    await api.removeMessage(this.id, message.id);
    const rest = this.siblings(message).filter(({ id }) => id !== message.id);
    await this.refresh();
    if (this.messages.has(this.leaf)) return;
    this.leaf = rest.length ? this.#newestBelow(rest.at(-1).id) : message.parent;
    this.changed("tree");
  }

  async clear() {
    this.leave();
    this.meta = await api.clear(this.id);
    this.messages.clear();
    this.leaf = this.reply = null;
    this.changed("tree");
  }

  async change(values) {
    if (this.id) this.meta = await api.change(this.id, values);
    else this.meta = { ...this.meta, ...values };
    this.changed("meta");
  }

  /** Take over what another tab or device has changed. */
  async refresh() {
    if (this.id) this.#adopt(await api.read(this.id));
    this.changed("tree");
    this.listen();
  }

  /** Go on with a reply that the server is still writing. */
  listen() {
    if (this.isBusy) return;
    const written = this.path.find((message) => message.role === "assistant" && message.finish_reason === null);
    if (written) this.#track(new Reply(this.id, (what) => this.#heard(what), written)).follow().catch(reportError);
  }

  /** Stop listening; the server goes on writing. */
  leave() {
    this.reply?.leave();
  }

  async #ask(body) {
    if (this.isBusy) throw new Error("a reply is being written");
    const known = new Set(this.messages.keys());
    const reply = this.#track(new Reply(this.id, (what) => this.#heard(what)));
    await new Promise((resolve, reject) => {
      this.#started = resolve;
      reply.ask(body).then(resolve, reject);
    }).catch((error) => {
      reply.phase = "done";
      this.changed("end");
      throw error;
    });
    if (reply.message) return;
    // The line broke before the server said what it had stored: look.
    await this.refresh();
    if ([...this.messages.keys()].some((id) => !known.has(id))) return;
    throw new ApiError(reply.error?.message, 0, reply.error?.code);
  }

  #started = () => {};

  #track(reply) {
    this.reply = reply;
    this.changed("waiting");
    return reply;
  }

  #heard(what) {
    if (what === "start") {
      for (const message of [this.reply.user, this.reply.message]) if (message) this.messages.set(message.id, message);
      this.leaf = this.reply.message.id;
      this.#started();
    }
    this.changed(what);
  }

  #adopt({ conversation, messages }) {
    const live = this.isBusy ? this.reply.message : null;
    this.meta = conversation;
    this.messages = new Map(messages.map((message) => [message.id, message.id === live?.id ? live : message]));
    if (live && !this.messages.has(live.id)) this.leave(); // removed elsewhere
    const theirs = conversation.leaf ?? messages.at(-1)?.id ?? null;
    if (!this.messages.has(this.leaf) || this.#isBelow(theirs, this.leaf)) this.leaf = theirs;
  }

  #isBelow(id, ancestor) {
    for (let message = this.messages.get(id); message; message = this.messages.get(message.parent))
      if (message.id === ancestor) return true;
    return false;
  }

  #children(parent) {
    return [...this.messages.values()]
      .filter((message) => message.parent === parent)
      .sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
  }

  #newestBelow(id) {
    for (let child; (child = this.#children(id).at(-1)); ) id = child.id;
    return id;
  }
}
