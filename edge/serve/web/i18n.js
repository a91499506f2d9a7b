// The page in English and Chinese, chosen from the browser until somebody chooses otherwise.

import { recall, remember } from "./storage.js";

// [English, 中文]; {name} is filled in
const TEXTS = {
  add_folder: ["New folder…", "新建文件夹…"],
  answer_now: ["Answer now", "直接回答"],
  answer_ready: ["The answer is ready.", "回答完成。"],
  api_refused: ["The server refused: {message}", "服务器拒绝：{message}"],
  ask: ["Ask something", "有什么想问的？"],
  ask_hint: ["Thoughts and answers stay on this machine.", "思考和回答都留在这台机器上。"],
  attach: ["Attach a text, code or PDF file", "附加文本、代码或 PDF 文件"],
  attachment_too_long: ["{name} has {n} tokens; the context holds {ctx}. Attach a shorter file.", "{name} 有 {n} 个词元，上下文只能容纳 {ctx} 个。请附加更短的文件。"],
  attachments_too_long: ["The files together have {n} tokens; the context holds {ctx}. Remove one.", "这些文件共有 {n} 个词元，上下文只能容纳 {ctx} 个。请移除一个。"],
  board: ["Board", "设备"],
  board_context: ["KV memory in use", "KV 缓存占用"],
  board_memory: ["Engine memory", "引擎内存"],
  board_model: ["Model", "模型"],
  board_state: ["Engine", "引擎"],
  board_temperature: ["Temperature", "温度"],
  board_throttled: ["Throttling", "降频"],
  board_version: ["Version", "版本"],
  branch_of: ["Version {i} of {n}", "第 {i} 个版本，共 {n} 个"],
  cancel: ["Cancel", "取消"],
  cancelled: ["Stopped.", "已停止。"],
  clear: ["Clear the conversation", "清空对话"],
  clear_sure: ["Clear", "清空"],
  clear_text: ["All messages of this conversation go, and the engine forgets them. This cannot be undone.", "此对话的所有消息都会删除，引擎也会忘记它们。此操作无法撤销。"],
  cleared: ["Cleared. KV memory in use: {before} → {after} tokens.", "已清空。KV 缓存占用：{before} → {after} 个词元。"],
  close: ["Close", "关闭"],
  code: ["code", "代码"],
  context: ["Context", "上下文"],
  context_of: ["{n} of {ctx} tokens of context used", "已用上下文 {n} / {ctx} 个词元"],
  continue: ["Continue", "继续"],
  copied: ["Copied", "已复制"],
  copy: ["Copy", "复制"],
  copy_code: ["Copy the code", "复制代码"],
  delete: ["Delete", "删除"],
  delete_message: ["Delete from here on", "从此处起删除"],
  delete_message_text: ["This message and everything after it on this branch goes. This cannot be undone.", "这条消息以及此分支之后的所有内容都会删除。此操作无法撤销。"],
  deleted: ["“{title}” was deleted.", "已删除“{title}”。"],
  dropped: ["The context is full: the oldest {n} turns were left out of the prompt.", "上下文已满：最早的 {n} 轮未放入提示。"],
  earlier: ["Show {n} earlier messages", "显示更早的 {n} 条消息"],
  edit: ["Edit", "编辑"],
  edit_send: ["Send as a new version", "作为新版本发送"],
  engine_error: ["The answer broke off: {message}", "回答中断：{message}"],
  example_sum: ["What is 347 + 85?", "347 加 85 等于多少？"],
  export_json: ["Export as JSON", "导出为 JSON"],
  export_markdown: ["Export as Markdown", "导出为 Markdown"],
  folder: ["Folder", "文件夹"],
  folder_name: ["Name of the folder", "文件夹名称"],
  folder_none: ["No folder", "无文件夹"],
  gone: ["This conversation is not there any more.", "此对话已不存在。"],
  import: ["Import a conversation", "导入对话"],
  imported: ["“{title}” was imported.", "已导入“{title}”。"],
  import_bad: ["{name} is not an exported conversation (JSON).", "{name} 不是导出的对话（JSON）。"],
  key: ["Key", "密钥"],
  key_text: ["This server asks for its key. It was printed when the server was started.", "此服务器需要密钥。密钥在服务器启动时显示。"],
  key_wrong: ["That was not the key. Try again.", "密钥不正确，请重试。"],
  key_use: ["Use this key", "使用此密钥"],
  language: ["Language", "语言"],
  latest: ["Jump to the latest", "跳到最新"],
  length: ["Cut at the token limit.", "达到词元上限，已截断。"],
  list_empty: ["Conversations appear here.", "对话会显示在这里。"],
  list_nothing: ["Nothing found.", "没有找到。"],
  lost: ["Connection lost. What was written is kept; trying again…", "连接已断开。已写的内容已保留，正在重试……"],
  lost_before: ["The connection broke before the question arrived. It is still in the box: send it again.", "连接在问题送达前中断。问题仍在输入框中，请重新发送。"],
  menu_conversation: ["Conversation menu", "对话菜单"],
  menu_open: ["Open the list of conversations", "打开对话列表"],
  minutes: ["{m} min {s} s", "{m} 分 {s} 秒"],
  new_chat: ["New chat", "新对话"],
  no: ["no", "否"],
  pin: ["Pin", "置顶"],
  pinned: ["Pinned", "置顶"],
  placeholder: ["Write a message", "输入消息"],
  preset: ["Preset", "预设"],
  preset_own: ["Own settings", "自定义"],
  reading: ["Reading the prompt", "正在读取提示"],
  reading_of: ["{n} of {total} tokens", "{n} / {total} 个词元"],
  reading_left: ["{time} left", "还剩 {time}"],
  regenerate: ["Answer again", "重新回答"],
  remove: ["Remove {name}", "移除 {name}"],
  rename: ["Rename", "重命名"],
  retry: ["Try again", "重试"],
  save: ["Save", "保存"],
  search: ["Search", "搜索"],
  seconds: ["{s} s", "{s} 秒"],
  send: ["Send", "发送"],
  server_away: ["The server does not answer. Is it running?", "服务器没有响应。它在运行吗？"],
  settings: ["Settings of this conversation", "此对话的设置"],
  set_budget: ["Thinking budget (tokens)", "思考预算（词元）"],
  set_budget_hint: ["After this many tokens of thought it must answer.", "思考达到此词元数后必须回答。"],
  set_default: ["default", "默认"],
  set_max: ["Longest answer (tokens)", "最长回答（词元）"],
  set_seed: ["Seed", "随机种子"],
  set_seed_hint: ["The same seed gives the same answer.", "相同的种子给出相同的回答。"],
  set_system: ["System prompt", "系统提示"],
  set_temperature: ["Temperature", "温度参数"],
  set_temperature_hint: ["0 always takes the likeliest word.", "0 总是选择最可能的词。"],
  set_top_p: ["Top p", "Top p"],
  shortcuts: ["Keyboard shortcuts", "键盘快捷键"],
  short_list: ["Enter sends · Shift+Enter new line · Esc stops · Ctrl+K search · Ctrl+Shift+O new chat", "Enter 发送 · Shift+Enter 换行 · Esc 停止 · Ctrl+K 搜索 · Ctrl+Shift+O 新对话"],
  skip: ["Skip to the message box", "跳到输入框"],
  state_ok: ["ready", "就绪"],
  state_restarting: ["restarting", "正在重启"],
  state_loading: ["loading", "加载中"],
  state_down: ["down", "已停止"],
  stop: ["Stop", "停止"],
  theme: ["Appearance", "外观"],
  theme_auto: ["As the system", "跟随系统"],
  theme_dark: ["Dark", "深色"],
  theme_light: ["Light", "浅色"],
  thinking: ["Thinking", "思考中"],
  thought: ["Thought", "思考"],
  thought_for: ["Thought for {time}", "思考了 {time}"],
  today: ["Today", "今天"],
  tokens: ["{n} tokens", "{n} 个词元"],
  tokens_per_second: ["{n} tokens/s", "{n} 词元/秒"],
  undo: ["Undo", "撤销"],
  unknown: ["unknown", "未知"],
  unpin: ["Unpin", "取消置顶"],
  unsaved: ["Nothing is being saved: {message}", "目前无法保存：{message}"],
  untitled: ["New chat", "新对话"],
  waiting: ["Waiting for the engine", "等待引擎"],
  week: ["Last seven days", "最近七天"],
  earlier_days: ["Earlier", "更早"],
  yes: ["yes", "是"],
  yesterday: ["Yesterday", "昨天"],
  you: ["You", "你"],
  assistant: ["Answer", "回答"],
  conversations: ["Conversations", "对话列表"],
};

export const LANGUAGES = { en: "English", zh: "中文" };

function preferred() {
  const chosen = recall("language");
  if (chosen in LANGUAGES) return chosen;
  const first = navigator.languages.find((tag) => /^(en|zh)\b/i.test(tag)) ?? "en";
  return first.toLowerCase().startsWith("zh") ? "zh" : "en";
}

export const language = preferred();
const column = language === "zh" ? 1 : 0;

/** The text of that name, in the page's language. */
export function t(name, values = {}) {
  if (!TEXTS[name]) throw new Error(`no text named ${name}`);
  return TEXTS[name][column].replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

/** Fill in the static page: data-t is the text of an element, data-t-label its name. */
export function translate(root) {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-t-label]")) {
    element.setAttribute("aria-label", t(element.dataset.tLabel));
    if (element.matches("button")) element.title = t(element.dataset.tLabel);
  }
  for (const element of root.querySelectorAll("[data-t-placeholder]")) element.placeholder = t(element.dataset.tPlaceholder);
}

/** Speak another language from now on. What is being typed is kept as a draft. */
export function speak(code) {
  remember("language", code);
  location.reload();
}

const count = new Intl.NumberFormat(language);

export const number = (n) => count.format(Math.round(n));
export const decimal = (n) => new Intl.NumberFormat(language, { maximumFractionDigits: n < 100 ? 1 : 0 }).format(n);
export const tokens = (n) => t("tokens", { n: number(n) });

export function duration(seconds) {
  if (seconds < 10) return t("seconds", { s: decimal(seconds) });
  const whole = Math.round(seconds);
  return whole < 60 ? t("seconds", { s: whole }) : t("minutes", { m: Math.floor(whole / 60), s: whole % 60 });
}
