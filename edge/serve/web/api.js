// The server as the page sees it: JSON calls and event streams. Asks for the key when the server wants one.

import { recall, remember } from "./storage.js";

/** The server said no, or could not be reached (status 0). `message` is for people. */
export class ApiError extends Error {
  constructor(message, status, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let askForKey = async () => null;
let asking = null; // one question, however many calls wait for its answer

/** ask(wasWrong) -> the key the user typed, or null. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

async function send(method, path, { body, raw, signal } = {}) {
  const key = recall("key");
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (raw !== undefined) headers["Content-Type"] = "application/octet-stream";
  else if (method !== "GET") headers["Content-Type"] = "application/json";
  const payload = raw ?? (body === undefined ? undefined : JSON.stringify(body));
  let response;
  try {
    response = await fetch(path, { method, headers, body: payload, signal, cache: "no-store" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(String(error.message ?? error), 0);
  }
  if (response.status === 401) {
    if (recall("key") === key) {
      asking ??= askForKey(Boolean(key)).finally(() => (asking = null));
      const typed = await asking;
      if (typed === null) throw await failure(response);
      remember("key", typed);
    }
    return send(method, path, { body, raw, signal });
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  let said = null;
  try {
    said = await response.json();
  } catch {
    // not JSON: the status has to do
  }
  const error = said?.error ?? said?.detail ?? said;
  const text = typeof error === "string" ? error : error?.message;
  return new ApiError(text ?? `HTTP ${response.status}`, response.status, error?.code ?? null);
}

async function json(method, path, options) {
  const response = await send(method, path, options);
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}

/** The `data:` objects of an event stream, one by one. Ends when the stream ends; throws when it breaks. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const records = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
      rest = records.pop();
      for (const record of records) {
        const data = record
          .split("\n")
          .filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5).trimStart());
        if (data.length && data[0] !== "[DONE]") yield JSON.parse(data.join("\n"));
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // also when the consumer leaves early
  }
}

const query = (values) => {
  const set = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return set.length ? `?${new URLSearchParams(set)}` : "";
};
const at = (id, rest = "") => `/api/conversations/${encodeURIComponent(id)}${rest}`;

export const api = {
  list: (filter = {}) => json("GET", `/api/conversations${query(filter)}`),
  create: (values = {}) => json("POST", "/api/conversations", { body: values }),
  read: (id) => json("GET", at(id)),
  change: (id, values) => json("PATCH", at(id), { body: values }),
  remove: (id) => json("DELETE", at(id)),
  restore: (id) => json("POST", at(id, "/restore")),
  clear: (id) => json("POST", at(id, "/clear")),
  removeMessage: (id, message) => json("DELETE", at(id, `/messages/${message}`)),
  control: (id, message, action) => json("POST", at(id, `/messages/${message}/control`), { body: { action } }),
  reply: (id, body, signal) => send("POST", at(id, "/reply"), { body, signal }),
  follow: (id, message, offsets, signal) => send("GET", at(id, `/messages/${message}/events${query(offsets)}`), { signal }),
  attach: (name, bytes) => json("POST", `/api/attachments${query({ name })}`, { raw: bytes }),
  import: (data) => json("POST", "/api/conversations/import", { body: data }),
  export: async (id, format) => (await send("GET", at(id, `/export${query({ format })}`))).blob(),
  status: () => json("GET", "/api/status"),
  presets: () => json("GET", "/api/presets"),
};
