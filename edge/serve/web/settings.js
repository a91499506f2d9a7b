// How this conversation is answered: system prompt, sampling, limits, presets. Saved as they are changed.

import { api } from "./api.js";
import { button, byId, h } from "./dom.js";
import { language, t } from "./i18n.js";
import { tell } from "./notices.js";

// name, label, range, hint
const NUMBERS = [
  ["temperature", "set_temperature", { min: "0", max: "5", step: "0.05" }, "set_temperature_hint"],
  ["top_p", "set_top_p", { min: "0.01", max: "1", step: "0.01" }],
  ["max_tokens", "set_max", { min: "1", step: "1" }],
  ["thinking_budget_tokens", "set_budget", { min: "0", step: "1" }, "set_budget_hint"],
  ["seed", "set_seed", { min: "0", max: "4294967295", step: "1" }, "set_seed_hint"],
];
const NAMES = ["system", ...NUMBERS.map(([name]) => name)];
const SAVE_AFTER_MS = 400;

export class Settings {
  #conversation = null;
  #presets = [];
  #fields = {};
  #timer = null;

  constructor() {
    this.panel = byId("settings");
    this.toggle = byId("open-settings");
    this.toggle.addEventListener("click", () => this.show(this.panel.hidden));
    this.panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.show(false);
      this.toggle.focus();
    });
  }

  async loadPresets() {
    this.#presets = await api.presets();
    this.#build();
    return this.#presets;
  }

  titleOf(preset) {
    return preset[`title_${language}`] ?? preset.name;
  }

  /** Show the settings of this conversation from now on. */
  use(conversation) {
    clearTimeout(this.#timer);
    this.#conversation = conversation;
    this.#build();
  }

  show(isShown) {
    this.panel.hidden = !isShown;
    this.toggle.setAttribute("aria-expanded", String(isShown));
    if (isShown) this.#fields.preset?.focus();
  }

  /** Take over a preset: what it does not name goes back to the default. */
  apply(preset) {
    const settings = Object.fromEntries(NAMES.map((name) => [name, preset.settings[name] ?? null]));
    this.#save(settings);
    this.#build();
  }

  #build() {
    const settings = this.#conversation?.meta.settings ?? {};
    const hadFocus = this.panel.contains(document.activeElement) ? document.activeElement.name : null;
    const isUsed = (preset) => NAMES.every((name) => (preset.settings[name] ?? null) === (settings[name] ?? null));
    const chosen = this.#presets.findIndex(isUsed);
    this.#fields = {
      preset: h(
        "select",
        { name: "preset", onchange: (event) => this.apply(this.#presets[event.target.value]) },
        h("option", { value: "", disabled: true, selected: chosen < 0 }, t("preset_own")),
        this.#presets.map((preset, i) => h("option", { value: String(i), selected: i === chosen }, this.titleOf(preset))),
      ),
      system: h("textarea", { name: "system", rows: "5", value: settings.system ?? "", oninput: () => this.#later(), dir: "auto" }),
    };
    for (const [name, , range] of NUMBERS) {
      const value = settings[name] ?? "";
      const props = { type: "number", name, value, placeholder: t("set_default"), inputmode: "decimal", ...range };
      this.#fields[name] = h("input", { ...props, oninput: () => this.#later() });
    }
    const close = button("close", t("close"), () => this.show(false));
    this.panel.replaceChildren(
      h("div", { class: "panel-head" }, h("h2", {}, t("settings")), close),
      label(t("preset"), this.#fields.preset),
      label(t("set_system"), this.#fields.system),
      ...NUMBERS.map(([name, key, , hint]) => label(t(key), this.#fields[name], hint && t(hint))),
    );
    if (hadFocus) this.#fields[hadFocus]?.focus();
  }

  #later() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#saveFields(), SAVE_AFTER_MS);
  }

  #saveFields() {
    const fields = NUMBERS.map(([name]) => this.#fields[name]);
    if (!fields.every((field) => field.reportValidity())) return;
    const values = { system: this.#fields.system.value.trim() || null };
    for (const field of fields) values[field.name] = field.value === "" ? null : Number(field.value);
    this.#save(values);
    const isUsed = (preset) => NAMES.every((name) => (preset.settings[name] ?? null) === (values[name] ?? null));
    const chosen = this.#presets.findIndex(isUsed);
    this.#fields.preset.value = chosen < 0 ? "" : String(chosen);
  }

  #save(settings) {
    clearTimeout(this.#timer);
    this.#conversation.meta.settings = settings;
    this.#conversation.change({ settings }).catch(tell);
  }
}

function label(text, field, hint = null) {
  return h("label", {}, h("span", {}, text), field, hint && h("small", {}, hint));
}
