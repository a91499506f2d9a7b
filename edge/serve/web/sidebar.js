// The list of conversations: search, folders, pins, and what can be done with each.

import { api } from "./api.js";
import { button, byId, h, icon, menu } from "./dom.js";
import { t } from "./i18n.js";
import { prompt, tell, toast } from "./notices.js";

const SEARCH_AFTER_MS = 120;
const PAGE = 50;
const DAY_S = 86400;

/** actions: open(id), changed(id) after a change to a conversation, removed(id). */
export class Sidebar {
  entries = [];
  folders = [];
  #query = "";
  #current = null;
  #hasMore = false;
  #timer = null;
  #nLoads = 0;

  constructor(actions) {
    this.actions = actions;
    this.root = byId("list");
    this.search = byId("search");
    this.search.before(icon("search"));
    this.search.addEventListener("input", () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.load(), SEARCH_AFTER_MS);
    });
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.search.value) {
        event.stopPropagation();
        this.search.value = "";
        this.load();
      }
      if (event.key === "ArrowDown") this.#step(event, 1);
    });
    this.root.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown") this.#step(event, 1);
      if (event.key === "ArrowUp") this.#step(event, -1);
    });
  }

  /** Ask the server for the list; raises ApiError. Returns its answer, or null when a later question overtook it. */
  async load() {
    const nth = ++this.#nLoads;
    this.#query = this.search.value.trim();
    const answer = await api.list({ query: this.#query, limit: Math.max(PAGE, this.entries.length) });
    if (nth !== this.#nLoads) return null;
    this.entries = answer.conversations;
    this.folders = answer.folders ?? [...new Set(this.entries.map(({ folder }) => folder).filter(Boolean))];
    this.#hasMore = this.entries.length >= PAGE;
    this.#draw();
    return answer;
  }

  select(id) {
    this.#current = id;
    for (const link of this.root.querySelectorAll("a")) this.#mark(link);
  }

  async #more() {
    const rest = await api.list({ query: this.#query, limit: PAGE, before: this.entries.at(-1).updated }).catch(tell);
    if (!rest) return;
    const known = new Set(this.entries.map(({ id }) => id));
    this.entries.push(...rest.conversations.filter(({ id }) => !known.has(id)));
    this.#hasMore = rest.conversations.length === PAGE;
    this.#draw();
  }

  #draw() {
    const focused = this.root.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    const groups = this.#query ? [[null, this.entries]] : this.#groups();
    const parts = groups.map(([name, entries]) =>
      h("section", {}, name && h("h2", {}, name.isFolder && icon("folder"), name.text ?? name), h("ul", {}, entries.map((entry) => this.#item(entry)))),
    );
    if (!this.entries.length) parts.push(h("p", { class: "faint" }, t(this.#query ? "list_nothing" : "list_empty")));
    if (this.#hasMore) parts.push(button("down", t("earlier_days"), () => this.#more(), { text: true, class: "plain" }));
    this.root.replaceChildren(...parts);
    if (focused) this.root.querySelector(`a[data-id="${focused}"]`)?.focus();
  }

  #groups() {
    const midnight = new Date().setHours(0, 0, 0, 0) / 1000;
    const groups = new Map([["pinned", []]]);
    for (const folder of this.folders) groups.set(`/${folder}`, []);
    for (const name of ["today", "yesterday", "week", "earlier_days"]) groups.set(name, []);
    for (const entry of this.entries) {
      const { pinned, folder, updated } = entry;
      const age = updated >= midnight ? "today" : updated >= midnight - DAY_S ? "yesterday" : null;
      const name = pinned ? "pinned" : folder ? `/${folder}` : (age ?? (updated >= midnight - 7 * DAY_S ? "week" : "earlier_days"));
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(entry);
    }
    const titled = (name) => (name.startsWith("/") ? { text: name.slice(1), isFolder: true } : t(name));
    return [...groups].filter(([, entries]) => entries.length).map(([name, entries]) => [titled(name), entries]);
  }

  #item(entry) {
    const title = entry.title || t("untitled");
    const link = h("a", { href: `#/c/${entry.id}`, "data-id": entry.id, dir: "auto" }, h("span", { class: "entry-title" }, title));
    if (entry.snippet) link.append(h("small", {}, ...marked(entry.snippet, this.#query)));
    this.#mark(link);
    const more = button("more", `${t("menu_conversation")}: ${title}`, () => menu(more, this.items(entry)), {
      "aria-haspopup": "menu",
      "aria-expanded": "false",
    });
    return h("li", {}, link, more);
  }

  #mark(link) {
    if (link.dataset.id === this.#current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }

  #step(event, by) {
    const links = [...this.root.querySelectorAll("a")];
    const next = links[links.indexOf(document.activeElement) + by] ?? (by < 0 ? this.search : null);
    if (!next) return;
    event.preventDefault();
    next.focus();
  }

  /** The menu of one conversation. */
  items(entry) {
    return [
      ["edit", t("rename"), () => this.rename(entry)],
      ["pin", t(entry.pinned ? "unpin" : "pin"), () => this.#change(entry, { pinned: !entry.pinned })],
      ["folder", t("folder"), () => this.#chooseFolder(entry)],
      ["export", t("export_markdown"), () => this.#export(entry, "markdown")],
      ["export", t("export_json"), () => this.#export(entry, "json")],
      null,
      ["trash", t("delete"), () => this.#remove(entry), { danger: true }],
    ];
  }

  async rename(entry) {
    const title = await prompt(t("rename"), { value: entry.title });
    if (title) await this.#change(entry, { title });
  }

  #chooseFolder(entry) {
    const anchor = this.root.querySelector(`a[data-id="${entry.id}"]`) ?? byId("open-menu");
    const own = async () => {
      const folder = await prompt(t("folder_name"));
      if (folder) this.#change(entry, { folder });
    };
    menu(anchor, [
      ...this.folders.map((folder) => [folder === entry.folder ? "check" : "folder", folder, () => this.#change(entry, { folder })]),
      ["new", t("add_folder"), own],
      ...(entry.folder ? [null, ["close", t("folder_none"), () => this.#change(entry, { folder: null })]] : []),
    ]);
  }

  async #change(entry, values) {
    try {
      await api.change(entry.id, values);
      this.actions.changed(entry.id);
    } catch (error) {
      tell(error);
    }
  }

  async #remove(entry) {
    const undo = async () => {
      await api.restore(entry.id).catch(tell);
      this.actions.changed(entry.id);
      this.actions.open(entry.id);
    };
    try {
      await api.remove(entry.id);
      this.actions.removed(entry.id);
      toast(t("deleted", { title: entry.title || t("untitled") }), { label: t("undo"), run: undo });
    } catch (error) {
      tell(error);
    }
  }

  async #export(entry, format) {
    try {
      const blob = await api.export(entry.id, format);
      const name = (entry.title || "conversation").replace(/[\\/:*?"<>|\s\p{Cc}]+/gu, " ").trim();
      const link = h("a", { href: URL.createObjectURL(blob), download: `${name}.${format === "json" ? "json" : "md"}` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    } catch (error) {
      tell(error);
    }
  }

  /** Take in an exported conversation. */
  async import(file) {
    try {
      const made = await api.import(JSON.parse(await file.text()));
      toast(t("imported", { title: made.title }));
      this.actions.changed(made.id);
      this.actions.open(made.id);
    } catch (error) {
      if (error instanceof SyntaxError) toast(t("import_bad", { name: file.name }));
      else tell(error);
    }
  }
}

/** The snippet with the words of the query marked. */
function marked(snippet, query) {
  const words = query.split(/\s+/).filter(Boolean);
  const pattern = new RegExp(`(${words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`, "giu");
  return words.length ? snippet.split(pattern).map((part, i) => (i % 2 ? h("mark", {}, part) : part)) : [snippet];
}
