// What this browser remembers: drafts, theme, language, key. Without storage (full, or forbidden) it lasts until reload.

const memory = new Map();

export function remember(name, value) {
  if (value === null || value === "") memory.delete(name);
  else memory.set(name, value);
  try {
    if (value === null || value === "") localStorage.removeItem(`edge.${name}`);
    else localStorage.setItem(`edge.${name}`, value);
  } catch {
    // the copy in memory serves
  }
}

export function recall(name) {
  if (memory.has(name)) return memory.get(name);
  try {
    return localStorage.getItem(`edge.${name}`);
  } catch {
    return null;
  }
}
