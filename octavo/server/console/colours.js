// A colour for each request, as long as it lives, and not the one that another had just before.

const LIGHT = ["#3b78c2", "#c9622f", "#3f8f5f", "#8a5bb5", "#b3902a", "#c04a78", "#2f8f97", "#7d6a55"];
const DARK = ["#6aa5ec", "#ec9160", "#6cc191", "#b790e6", "#dcbd5c", "#ee82aa", "#5fc3cb", "#bda68c"];
const given = new Map();
let next = 0;

export const isDark = () => document.documentElement.dataset.theme === "dark";

export function colour(uid) {
  if (!given.has(uid)) given.set(uid, next++ % LIGHT.length);
  return (isDark() ? DARK : LIGHT)[given.get(uid)];
}

export function forget(alive) {
  for (const uid of given.keys()) if (!alive.has(uid)) given.delete(uid);
}
