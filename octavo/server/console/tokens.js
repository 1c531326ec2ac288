// What else the model might have said: a tooltip for each token, by pointer or arrow keys.

import { make } from "./text.js";

const tip = document.getElementById("tip");
const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1)} %`;
const visible = (token) => token.replaceAll("\n", "↵").replaceAll(" ", "·") || "∅";

function show(span, entry) {
  const known = entry.top_logprobs.some((each) => each.token === entry.token);
  const rows = (known ? entry.top_logprobs : [entry, ...entry.top_logprobs]).map((each) => {
    const bar = make("i");
    bar.style.width = `${100 * Math.exp(each.logprob)}%`;
    return make("div", { className: each.token === entry.token ? "row chosen" : "row" },
      make("span", { textContent: visible(each.token) }), make("span", { className: "of" }, bar),
      make("span", { className: "share", textContent: percent(each.logprob) }));
  });
  tip.replaceChildren(...rows);
  tip.hidden = false;
  const box = span.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${box.bottom + tip.offsetHeight + 8 < innerHeight ? box.bottom + 5 : box.top - tip.offsetHeight - 5}px`;
}

function hide(text) {
  tip.hidden = true;
  text.querySelector(".at")?.classList.remove("at");
}

// Colours the tokens of an answer and makes them answer to pointer and keys.
export function tint(text, entries) {
  for (const span of text.querySelectorAll(".token")) {
    const entry = entries[span.dataset.token];
    if (entry) span.style.setProperty("--doubt", 1 - Math.exp(entry.logprob));
  }
}

export function watch(text, entries, shown, announce) {
  const of = (target) => target.closest?.(".token");
  text.addEventListener("pointerover", ({ target }) => {
    const span = of(target);
    if (span && shown() && entries[span.dataset.token]) show(span, entries[span.dataset.token]);
    else tip.hidden = true;
  });
  text.addEventListener("pointerleave", () => hide(text));
  text.addEventListener("blur", () => hide(text));
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hide(text);
    if (!step || !shown()) return;
    const spans = [...text.querySelectorAll(".token")];
    const now = spans.findIndex((each) => each.classList.contains("at"));
    const next = spans[Math.max(0, Math.min(spans.length - 1, now + step))];
    const entry = next && entries[next.dataset.token];
    if (!entry) return;
    event.preventDefault();
    spans[now]?.classList.remove("at");
    next.classList.add("at");
    show(next, entry);
    const others = entry.top_logprobs.filter((each) => each.token !== entry.token).slice(0, 2);
    announce(`${entry.token}: ${percent(entry.logprob)}; ` + others.map((each) => `${each.token} ${percent(each.logprob)}`).join(", "));
  });
}
