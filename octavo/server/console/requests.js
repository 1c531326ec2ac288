// Who runs and who waits, as a table whose rows light up their blocks.

import { colour } from "./colours.js";
import { make } from "./text.js";

const MAX_ROWS = 14;

export class Requests {
  constructor(body, onLight) {
    Object.assign(this, { body, onLight, rows: new Map() });
  }

  take({ running, waiting }) {
    const listed = [...running, ...waiting].slice(0, MAX_ROWS);
    const alive = new Set(listed.map(({ uid }) => uid));
    for (const [uid, row] of this.rows) {
      if (alive.has(uid)) continue;
      if (row.contains(document.activeElement) || row.matches(":hover")) this.onLight(null);
      row.remove();
      this.rows.delete(uid);
    }
    listed.forEach((request, i) => {
      const row = this.rows.get(request.uid) ?? this.row(request.uid);
      row.request = request;
      this.fill(row, request, running.includes(request));
      if (this.body.children[i] !== row) this.body.insertBefore(row, this.body.children[i] ?? null);
    });
  }

  row(uid) {
    const row = make("tr", { tabIndex: 0 }, make("th", { scope: "row" }), make("td"), make("td"), make("td"));
    for (const name of ["pointerenter", "focus"]) row.addEventListener(name, () => this.onLight(row.request));
    for (const name of ["pointerleave", "blur"]) row.addEventListener(name, () => this.onLight(null));
    const bar = make("div", { className: "progress" }, ...["found", "prompt", "answer"].map((each) => make("i", { className: each })));
    bar.setAttribute("role", "progressbar");
    row.children[0].append(make("span", { className: "swatch" }), make("span"));
    row.children[1].append(bar);
    this.rows.set(uid, row);
    return row;
  }

  fill(row, request, runs) {
    const [name, progress, tokens, blocks] = row.children;
    const limit = request.prompt_tokens + request.max_tokens, found = Math.max(0, request.cached_tokens);
    const prompt = Math.max(0, Math.min(request.computed_tokens, request.prompt_tokens) - found);
    const answer = Math.max(0, request.known_tokens - request.prompt_tokens);
    const shade = runs ? colour(request.uid) : "";
    name.firstChild.style.setProperty("--colour", shade);
    name.lastChild.textContent = (request.key ? `key ${request.key}: ` : "") + (request.id || request.uid);
    name.title = request.id;
    const bar = progress.firstChild;
    [found, prompt, answer].forEach((each, i) => {
      bar.children[i].style.width = `${(100 * each) / limit}%`;
      bar.children[i].style.setProperty("--colour", shade);
    });
    bar.setAttribute("aria-valuenow", Math.round((100 * (found + prompt + answer)) / limit));
    bar.setAttribute("aria-label", "tokens of all that the request may have");
    const hit = found ? `, ${found} cached` : "";
    tokens.textContent = runs ? `${request.prompt_tokens}${hit} + ${answer}` : `${request.prompt_tokens}, waits`;
    blocks.textContent = request.blocks || "–";
  }

  lit(requests) {
    const uids = new Set(requests.map(({ uid }) => uid));
    for (const [uid, row] of this.rows) row.classList.toggle("lit", uids.has(uid));
  }
}
