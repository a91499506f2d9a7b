// The page, put together: which conversation is open, and who is told when it changes.

import { api, onKeyNeeded } from "./api.js";
import { setUpBoard } from "./board.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { button, byId, h, icon, menu, onDismiss } from "./dom.js";
import { LANGUAGES, decimal, language, number, speak, t, tokens, translate } from "./i18n.js";
import { MessageList } from "./messages.js";
import { announce, banner, confirm, prompt, tell, toast } from "./notices.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { recall, remember } from "./storage.js";

const LOOK_EVERY_MS = 20_000; // for what other devices changed
const FIGURES_EVERY_MS = 250;

// ---- theme and language, before anything is drawn

function useTheme(theme) {
  remember("theme", theme === "auto" ? null : theme);
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}
useTheme(recall("theme") ?? "auto");
translate(document);

// ---- the parts

const tabs = new BroadcastChannel("edge");
let conversation = new Conversation();
let nCtxTokens = null;
let presets = [];
let figuresAt = 0;

const composer = new Composer({
  send: async (text, attachments) => {
    const asked = conversation;
    const isNew = !asked.id;
    await asked.send(text, attachments);
    if (isNew && asked === conversation) {
      composer.rename(asked.id);
      history.replaceState(null, "", `#/c/${asked.id}`);
      sidebar.select(asked.id);
    }
  },
  stop: () => conversation.control("stop").catch(tell),
  answerNow: () => conversation.control("answer_now").catch(tell),
});

const act = (action) => (message) => action(message).catch(tell);
const messages = new MessageList(byId("messages"), byId("scroller"), byId("latest"), {
  edit: (message, text) => conversation.edit(message, text).catch(tell),
  regenerate: act((message) => conversation.regenerate(message)),
  resume: act((message) => conversation.resume(message)),
  select: act((message) => conversation.select(message)),
  remove: act(async (message) => {
    if (await confirm(t("delete_message_text"), t("delete"))) {
      await conversation.removeMessage(message);
      shareChange();
    }
  }),
});

const settings = new Settings();

const sidebar = new Sidebar({
  open: (id) => (location.hash = id ? `#/c/${id}` : "#/"),
  changed: async (id) => {
    tabs.postMessage(id);
    await look();
  },
  removed: async (id) => {
    tabs.postMessage(id);
    if (id === conversation.id) location.hash = "#/";
    await look();
  },
});

// ---- one conversation is open

async function open(id) {
  conversation.leave();
  showSidebar(false);
  let next = new Conversation(onChange);
  if (id) {
    try {
      next = await Conversation.open(id, onChange);
    } catch (error) {
      if (error.status === 404) toast(t("gone"));
      else tell(error);
      history.replaceState(null, "", "#/");
      id = null;
    }
    if (id && idInAddress() !== id) return; // another one was chosen meanwhile
  }
  conversation = next;
  sidebar.select(id);
  composer.open(id);
  settings.use(conversation);
  messages.show(conversation);
  drawState();
  conversation.listen();
  if (!matchMedia("(pointer: coarse)").matches) composer.focus();
}

const idInAddress = () => /^#\/c\/([0-9a-f]{32})$/.exec(location.hash)?.[1] ?? null;
addEventListener("hashchange", () => open(idInAddress()));

function onChange(what, { id, reply }) {
  if (id !== conversation.id) return; // one that was left
  if (what !== "meta") messages.update(what);
  if (what === "piece" && performance.now() - figuresAt < FIGURES_EVERY_MS && reply.phase === figuresPhase) return;
  figuresAt = performance.now();
  drawState();
  if (what === "start") shareChange();
  if (what === "end") {
    announce(reply.error ? (reply.error.message ?? "") : t("answer_ready"));
    if (id) shareChange();
  }
  if (what === "dropped") toast(t("dropped", { n: reply.nDroppedTurns }));
}

let figuresPhase = null;

/** Everything around the messages: title, meters, buttons, banner. */
function drawState() {
  const { meta, reply, isBusy } = conversation;
  figuresPhase = reply?.phase;
  const title = meta.title || t("untitled");
  byId("title").textContent = title;
  document.title = meta.title ? `${title} · edge` : "edge";
  const isThinking = isBusy && reply.phase === "thought";
  composer.setBusy(isBusy, { canAnswerNow: isThinking });
  if (isThinking && byId("announcer").textContent !== t("thinking")) announce(t("thinking"));
  const speed = isBusy ? reply.tokensPerSecond : null;
  byId("speed").textContent = speed ? t("tokens_per_second", { n: decimal(speed) }) : "";
  drawContext();
  drawWelcome();
  const isLost = isBusy && !reply.isConnected;
  banner("lost", isLost ? t("lost") : null, () => reply.retryNow());
}

function drawContext() {
  const { n_used_tokens: n, n_ctx_tokens: ctx = nCtxTokens } = conversation.context;
  const box = byId("context");
  box.hidden = !ctx;
  if (!ctx) return;
  box.setAttribute("aria-valuemax", ctx);
  box.setAttribute("aria-valuenow", n);
  box.setAttribute("aria-label", t("context"));
  box.setAttribute("aria-valuetext", t("context_of", { n: number(n), ctx: number(ctx) }));
  box.title = t("context_of", { n: number(n), ctx: number(ctx) });
  byId("context-text").textContent = `${number(n)} / ${number(ctx)}`;
  byId("context-bar").style.width = `${Math.min(100, (100 * n) / ctx)}%`;
  box.classList.toggle("is-full", n > 0.9 * ctx);
}

function drawWelcome() {
  const isEmpty = !conversation.path.length && !conversation.isBusy;
  byId("main").classList.toggle("is-empty", isEmpty);
  const old = byId("welcome");
  if (!isEmpty) return old?.remove();
  const choose = (preset) => {
    settings.apply(preset);
    drawWelcome();
    composer.focus();
  };
  const isChosen = ({ settings }) =>
    Object.entries(settings).every(([name, value]) => (conversation.meta.settings[name] ?? null) === (value ?? null));
  const chosen = presets.filter(isChosen).sort((a, b) => weight(b) - weight(a))[0];
  const welcome = h(
    "section",
    { id: "welcome" },
    h("h2", {}, t("ask")),
    h("p", {}, t("ask_hint")),
    h(
      "div",
      { class: "presets" },
      presets.map((preset) =>
        h(
          "button",
          { type: "button", class: "preset", "aria-pressed": String(preset === chosen), onclick: () => choose(preset) },
          settings.titleOf(preset),
        ),
      ),
    ),
    h("button", { type: "button", class: "link", onclick: () => composer.fill(t("example_sum")) }, t("example_sum")),
  );
  if (old) old.replaceWith(welcome);
  else byId("messages").after(welcome);
}

const weight = ({ settings }) => Object.values(settings).filter((value) => value !== null).length;

// ---- what other tabs and devices do

function shareChange() {
  tabs.postMessage(conversation.id);
  look();
}

/** Ask for the list again; if the open conversation has changed elsewhere, show that. */
async function look() {
  try {
    const answer = await sidebar.load();
    banner("away", null);
    if (!answer) return;
    banner("unsaved", answer.saving === false ? t("unsaved", { message: answer.problem ?? "" }) : null);
    const entry = answer.conversations.find(({ id }) => id === conversation.id);
    if (!entry) return;
    const isBehind = entry.revision !== conversation.meta.revision;
    Object.assign(conversation.meta, { title: entry.title, folder: entry.folder, pinned: entry.pinned });
    if (isBehind && !conversation.isBusy) await conversation.refresh();
    drawState();
  } catch (error) {
    if (error.status === 0) banner("away", t("server_away"), look);
    else tell(error);
  }
}

tabs.addEventListener("message", () => look());
addEventListener("focus", () => look());
document.addEventListener("visibilitychange", () => document.hidden || look());
setInterval(() => document.hidden || look(), LOOK_EVERY_MS);

// ---- buttons and keys

function showSidebar(isShown) {
  document.body.classList.toggle("shows-sidebar", isShown);
  byId("open-sidebar").setAttribute("aria-expanded", String(isShown));
  byId("shade").hidden = !isShown;
}

function newChat() {
  if (idInAddress()) location.hash = "#/";
  else if (conversation.id) open(null);
  showSidebar(false);
  composer.focus();
}

async function clear() {
  if (!conversation.id || !(await confirm(t("clear_text"), t("clear_sure")))) return;
  const before = (await api.status()).kv_used_tokens;
  await conversation.clear();
  const after = (await api.status()).kv_used_tokens;
  toast(t("cleared", { before: number(before), after: number(after) }));
  shareChange();
}

function setUpButtons() {
  const labelled = { "new-chat": "new", "open-sidebar": "menu", "open-board": "board", "open-settings": "settings", "open-menu": "more", latest: "down" };
  for (const [id, name] of Object.entries(labelled)) byId(id).append(icon(name));
  byId("new-chat").addEventListener("click", newChat);
  byId("open-sidebar").addEventListener("click", () => showSidebar(true));
  byId("shade").addEventListener("click", () => showSidebar(false));
  byId("import").append(icon("import"), t("import"));
  byId("import").addEventListener("click", () => {
    const file = h("input", { type: "file", accept: ".json,application/json" });
    file.addEventListener("change", () => file.files[0] && sidebar.import(file.files[0]));
    file.click();
  });
  byId("open-menu").addEventListener("click", () => {
    const { meta } = conversation;
    const items = meta.id ? sidebar.items(meta) : [];
    menu(byId("open-menu"), [["clear", t("clear"), () => clear().catch(tell)], ...items]);
  });
  const preferences = byId("preferences");
  preferences.append(icon("settings"));
  preferences.addEventListener("click", () => {
    const theme = recall("theme") ?? "auto";
    menu(preferences, [
      ...["auto", "light", "dark"].map((name) => [theme === name ? "check" : "chevron", t(`theme_${name}`), () => useTheme(name)]),
      null,
      ...Object.entries(LANGUAGES).map(([code, name]) => [code === language ? "check" : "chevron", name, () => speak(code)]),
      null,
      ["answer", t("shortcuts"), () => toast(t("short_list"))],
    ]);
  });
  document.addEventListener("keydown", (event) => {
    const isCommand = event.ctrlKey || event.metaKey;
    if (isCommand && event.key.toLowerCase() === "k") {
      event.preventDefault();
      showSidebar(true);
      byId("search").focus();
    } else if (isCommand && event.shiftKey && event.key.toLowerCase() === "o") {
      event.preventDefault();
      newChat();
    } else if (event.key === "Escape" && document.body.classList.contains("shows-sidebar")) {
      showSidebar(false);
      composer.focus();
    } else if (event.key === "Escape" && conversation.isBusy && conversation.reply.message) {
      conversation.control("stop").catch(tell);
    }
  });
}

// ---- start

onKeyNeeded((wasWrong) => prompt(t("key"), { text: t(wasWrong ? "key_wrong" : "key_text"), type: "password", yes: t("key_use") }));
setUpButtons();
setUpBoard();
await open(idInAddress());
document.documentElement.dataset.ready = "";
const [status] = await Promise.all([api.status(), settings.loadPresets().then((found) => (presets = found)), look()]).catch((error) => {
  tell(error);
  return [null];
});
if (status) {
  nCtxTokens = status.n_ctx_tokens;
  byId("model").textContent = status.model;
}
drawState();
