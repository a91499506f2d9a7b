// The machine, on demand: temperature, memory, throttling, KV memory. Asked every two seconds while it is shown.

import { api } from "./api.js";
import { byId, h, onDismiss, place } from "./dom.js";
import { decimal, number, t, tokens } from "./i18n.js";
import { tell } from "./notices.js";

const EVERY_MS = 2000;

export function setUpBoard() {
  const toggle = byId("open-board");
  let close = null;

  async function open() {
    const box = h("div", { class: "board", role: "dialog", "aria-label": t("board"), tabindex: "-1" });
    document.body.append(box);
    toggle.setAttribute("aria-expanded", "true");
    let timer = null;
    const release = onDismiss(box, () => close());
    close = () => {
      clearTimeout(timer);
      release();
      box.remove();
      toggle.setAttribute("aria-expanded", "false");
      close = null;
      toggle.focus();
    };
    const refresh = async () => {
      try {
        show(box, await api.status());
        place(box, toggle);
      } catch (error) {
        close?.();
        return tell(error);
      }
      if (close) timer = setTimeout(refresh, EVERY_MS);
    };
    await refresh();
    box.focus();
  }

  toggle.addEventListener("click", () => (close ? close() : open()));
}

function show(box, status) {
  const celsius = status.temperature_celsius;
  const rows = [
    ["board_model", status.model],
    ["board_state", stateOf(status)],
    ["board_temperature", celsius === null ? t("unknown") : `${decimal(celsius)} °C`, celsius >= 80],
    ["board_throttled", status.throttled === null ? t("unknown") : t(status.throttled ? "yes" : "no"), status.throttled],
    ["board_memory", status.memory_bytes ? `${number(status.memory_bytes / 2 ** 20)} MiB` : t("unknown")],
    ["board_context", `${number(status.kv_used_tokens)} / ${tokens(status.n_ctx_tokens)}`],
    ["board_version", status.version],
  ];
  box.replaceChildren(
    h(
      "dl",
      {},
      rows.flatMap(([key, value, isBad]) => [h("dt", {}, t(key)), h("dd", { class: isBad ? "is-bad" : null }, value)]),
    ),
  );
}

function stateOf({ state }) {
  try {
    return t(`state_${state}`);
  } catch {
    return state; // a state this page does not know yet
  }
}
