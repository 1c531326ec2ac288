// The figures of the engine: differences of what two pictures say, and a line of the last half minute.

const KEPT = 120;

function line(svg, values) {
  const top = Math.max(...values, 1e-9), last = Math.max(values.length - 1, 1);
  const points = values.map((value, i) => `${((100 * (KEPT - 1 - last + i)) / (KEPT - 1)).toFixed(2)},${(30 - (28 * value) / top).toFixed(2)}`);
  const start = points[0].split(",")[0], path = `M${points.join("L")}`;
  svg.setAttribute("viewBox", "0 0 100 30");
  svg.setAttribute("preserveAspectRatio", "none");
  const [under, over] = svg.children.length ? svg.children : ["under", "over"].map((name) => {
    const found = document.createElementNS("http://www.w3.org/2000/svg", "path");
    found.setAttribute("class", name);
    return svg.appendChild(found);
  });
  over.setAttribute("d", path);
  under.setAttribute("d", `${path}L100,30L${start},30Z`);
}

const number = (value) => (value >= 100 ? Math.round(value).toLocaleString("en") : value.toFixed(1));

export class Figures {
  constructor() {
    this.last = null;
    this.kept = { rate: [], step: [], hits: [], used: [] };
  }

  show(name, value, text, unit) {
    const kept = this.kept[name], place = document.getElementById(name);
    kept.push(value);
    if (kept.length > KEPT) kept.shift();
    place.textContent = text;
    if (unit) place.append(" ", Object.assign(document.createElement("small"), { textContent: unit }));
    line(document.getElementById(`${name}-line`), kept);
  }

  take(picture, numBlocks) {
    const { pace } = picture, now = performance.now() / 1000, last = this.last;
    if (last && last.pace.steps === pace.steps && now - last.now < 0.2) return;
    const before = last && last.pace.steps <= pace.steps ? last : { pace, now: now - 1 };
    this.last = { pace, now };
    const steps = pace.steps - before.pace.steps, rate = (pace.sampled - before.pace.sampled) / (now - before.now);
    this.rate = rate ? 0.6 * rate + 0.4 * (this.rate || rate) : 0;
    this.show("rate", this.rate, number(this.rate));
    const step = steps ? (1000 * (pace.seconds - before.pace.seconds)) / steps : 0;
    this.show("step", step, step ? number(step) : "–", step ? "ms" : "");
    const asked = pace.prefix_queries, share = asked ? pace.prefix_hits / asked : 0;
    this.show("hits", share, asked ? String(Math.round(100 * share)) : "–", asked ? "%" : "");
    const used = picture.held_blocks;
    this.show("used", used, used.toLocaleString("en"), `of ${numBlocks.toLocaleString("en")}`);
  }
}
