// One reply as it grows: its pieces in order, what the prompt is doing, and a connection that may break and come back.

import { ApiError, api, events } from "./api.js";

const RETRY_AFTER_MS = [300, 1000, 2000, 4000, 8000];

const isHigh = (unit) => unit >= 0xd800 && unit <= 0xdbff;

/** Characters as the server counts them: code points. */
export function countCharacters(text) {
  let n = text.length;
  for (let i = 0; i < text.length - 1; i++) if (isHigh(text.charCodeAt(i))) n--;
  return n;
}

/** Where in `text` its first n characters end. */
function indexAfter(text, n) {
  let i = 0;
  for (; n > 0 && i < text.length; n--) i += isHigh(text.charCodeAt(i)) ? 2 : 1;
  return i;
}

/**
 * Follows one reply to its end. `message` is the stored assistant message and grows here.
 * Calls changed("start" | "piece" | "progress" | "connection" | "dropped" | "end").
 */
export class Reply {
  message = null;
  user = null;
  phase = "waiting"; // "prompt" | "thought" | "answer" | "done"
  progress = null; // {n_done_tokens, n_prompt_tokens, seconds_left}
  isConnected = true;
  nextTryAt = null; // ms, while not connected
  context = null; // {n_used_tokens, n_ctx_tokens}, with the last event
  nDroppedTurns = 0;
  error = null; // {message, code}
  thoughtMs = null; // how long the thought took, as far as this page saw it
  nTokens = { thought: 0, answer: 0 }; // the server's count, else pieces seen
  #abort = new AbortController();
  #nCharacters = { thought: 0, answer: 0 };
  #speedFrom = null; // {ms, n} of the first piece
  #lastPieceMs = 0;
  #wake = () => {};

  constructor(conversationId, changed, message = null) {
    this.conversationId = conversationId;
    this.changed = changed;
    if (message) this.#adopt(message);
  }

  get isRunning() {
    return this.phase !== "done";
  }

  /** Tokens a second since the first piece; null before there is something to measure. */
  get tokensPerSecond() {
    const n = this.nTokens.thought + this.nTokens.answer;
    const ms = this.#lastPieceMs - (this.#speedFrom?.ms ?? 0);
    return this.#speedFrom && ms > 200 ? ((n - this.#speedFrom.n) * 1000) / ms : null;
  }

  /** Ask for a new reply. Raises ApiError when it was refused: then nothing was stored. */
  async ask(body) {
    const response = await api.reply(this.conversationId, body, this.#abort.signal);
    await this.#run(response);
  }

  /** Go on listening to a reply that is being written. */
  async follow() {
    await this.#run(null);
  }

  /** Stop listening. The server goes on writing. */
  leave() {
    this.#abort.abort();
    this.#wake();
  }

  retryNow() {
    this.#wake();
  }

  async #run(response) {
    let nTries = 0;
    while (this.isRunning && !this.#abort.signal.aborted) {
      try {
        response ??= await this.#reconnect();
        for await (const event of events(response)) {
          nTries = 0;
          this.#connected(true);
          this.#take(event);
          if (!this.isRunning) return;
        }
        // the stream ended in the middle: as good as broken
      } catch (error) {
        if (this.#abort.signal.aborted) return;
        if (error instanceof ApiError && error.status >= 400 && error.status < 500) return this.#fail(error.message, error.code);
        if (!(error instanceof ApiError || error instanceof TypeError || error.name === "NetworkError")) throw error;
      }
      response = null;
      if (!this.message) return this.#fail(null, "connection_lost"); // broken before the server said what it stored
      if (this.#abort.signal.aborted) return;
      const pause = RETRY_AFTER_MS[Math.min(nTries++, RETRY_AFTER_MS.length - 1)];
      this.nextTryAt = Date.now() + pause;
      this.#connected(false);
      await this.#sleep(pause);
    }
  }

  #reconnect() {
    const offsets = { thought_offset: this.#nCharacters.thought, answer_offset: this.#nCharacters.answer };
    return api.follow(this.conversationId, this.message.id, offsets, this.#abort.signal);
  }

  #sleep(ms) {
    return new Promise((resolve) => {
      const online = () => this.#wake();
      const timer = setTimeout(() => this.#wake(), ms);
      this.#wake = () => {
        clearTimeout(timer);
        removeEventListener("online", online);
        this.#wake = () => {};
        resolve();
      };
      addEventListener("online", online);
    });
  }

  #connected(isConnected) {
    if (this.isConnected === isConnected && isConnected) return;
    this.isConnected = isConnected;
    this.changed("connection");
  }

  #adopt(message) {
    this.message = message;
    this.#nCharacters = { thought: countCharacters(message.reasoning ?? ""), answer: countCharacters(message.content) };
  }

  #take(event) {
    if (event.type === "message") {
      if (this.message) return; // said again to those who come back; what we have goes on
      this.user = event.user;
      this.#adopt(event.assistant);
      this.changed("start");
    } else if (event.type === "progress") {
      this.phase = "prompt";
      this.progress = event;
      this.changed("progress");
    } else if (event.type === "thought" || event.type === "answer") {
      this.#grow(event);
    } else if (event.type === "dropped") {
      this.nDroppedTurns = event.n_turns;
      this.changed("dropped");
    } else if (event.type === "done") {
      this.#endThought();
      this.context = event.context;
      this.#end(event.message);
    } else if (event.type === "error") {
      this.#fail(event.message, event.code);
    }
  }

  #grow({ type, text, offset, n_tokens }) {
    const have = this.#nCharacters[type];
    const overlap = have - offset;
    if (overlap < 0) throw new ApiError("a piece is missing", 0); // ask again from where we are
    const fresh = overlap ? text.slice(indexAfter(text, overlap)) : text;
    if (fresh) {
      if (type === "thought") this.message.reasoning = (this.message.reasoning ?? "") + fresh;
      else this.message.content += fresh;
      this.#nCharacters[type] = have + countCharacters(fresh);
    }
    const now = performance.now();
    if (type === "thought") this.thoughtStartMs ??= now;
    else this.#endThought(now);
    this.phase = type;
    this.nTokens[type] = n_tokens ?? this.nTokens[type] + 1;
    this.#lastPieceMs = now;
    this.#speedFrom ??= { ms: now, n: this.nTokens.thought + this.nTokens.answer };
    this.changed("piece");
  }

  #endThought(now = performance.now()) {
    if (this.thoughtStartMs !== undefined) this.thoughtMs ??= now - this.thoughtStartMs;
  }

  #fail(message, code) {
    this.error = { message, code };
    if (this.message) this.message.finish_reason ??= "error";
    this.#end(this.message);
  }

  #end(message) {
    if (message && this.message) Object.assign(this.message, message);
    this.phase = "done";
    this.#connected(true);
    this.changed("end");
  }
}
