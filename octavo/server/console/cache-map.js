// The KV cache as a folded sheet: a leaf for each block, or for a few where there are many.
// A free leaf is blank, a held one fills up in its request's colour, one that is shared has a stripe for each reader.

import { colour } from "./colours.js";

const GAP = 2;
const FOLD = 0.3; // of a leaf's width is the folded corner
const MAX_STRIPES = 4;

const bytes = (text) => Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
export const words = (text) => new Uint16Array(bytes(text).buffer);

export class CacheMap {
  constructor(canvas, explain, onPoint) {
    Object.assign(this, { canvas, explain, onPoint, at: -1, lit: null, map: null, running: [] });
    canvas.addEventListener("pointermove", (event) => this.point(this.cellAt(event)));
    canvas.addEventListener("pointerleave", () => this.point(-1));
    canvas.addEventListener("blur", () => this.point(-1));
    canvas.addEventListener("keydown", (event) => this.move(event));
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
  }

  take(picture, numBlocks) {
    const { span, cells, held, cached, withdrawn, holders, fill } = picture.map;
    this.map = {
      span, cells, held: words(held), cached: words(cached), withdrawn: words(withdrawn),
      holders: bytes(holders), fill: bytes(fill), numBlocks, size: picture.block_size,
    };
    this.running = picture.running;
    this.readers = Array.from({ length: cells }, () => []);
    this.running.forEach((request) => {
      request.places = words(request.cells);
      for (const cell of request.places) this.readers[cell].push(request);
    });
    new Int16Array(bytes(picture.map.owner).buffer).forEach((owner, cell) => {
      if (owner >= 0 && !this.readers[cell].length) this.readers[cell].push(this.running[owner]);
    });
    this.draw();
    if (this.at >= 0) this.tell();
  }

  light(request) {
    this.lit = request;
    this.draw();
  }

  layout() {
    const width = this.canvas.parentElement.clientWidth - 16;
    // Leaves are 1.3 times as high as wide; large where there are few of them, and never too small to be pointed at.
    const most = Math.min(26, Math.max(7, Math.sqrt((width * 300) / (1.3 * this.map.cells))));
    const columns = Math.max(8, Math.floor((width + GAP) / most / 8) * 8);
    const step = width / columns;
    return { width, columns, step, rise: step * 1.3, height: Math.ceil(this.map.cells / columns) * step * 1.3 };
  }

  draw() {
    if (!this.map) return;
    const { canvas, map } = this, { width, columns, step, rise, height } = this.layout();
    const scale = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      canvas.style.height = `${height}px`;
    }
    const style = getComputedStyle(document.documentElement), pen = canvas.getContext("2d");
    const [free, old, rule, ink, bad] = ["free", "cached", "rule", "ink", "bad"].map((name) => style.getPropertyValue(`--${name}`));
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    const w = step - GAP, h = rise - GAP, fold = w * FOLD;
    for (let cell = 0; cell < map.cells; cell += 1) {
      const x = (cell % columns) * step, y = Math.floor(cell / columns) * rise;
      const count = Math.min(map.span, map.numBlocks - cell * map.span), readers = this.readers[cell];
      const held = map.held[cell] / count, cached = map.cached[cell] / count;
      pen.globalAlpha = this.lit && !readers.includes(this.lit) ? 0.3 : 1;
      pen.save();
      pen.beginPath();
      pen.moveTo(x, y);
      pen.lineTo(x + w - fold, y);
      pen.lineTo(x + w, y + fold);
      pen.lineTo(x + w, y + h);
      pen.lineTo(x, y + h);
      pen.closePath();
      pen.fillStyle = map.withdrawn[cell] ? bad : free;
      pen.fill();
      if (w > 9) pen.clip();
      if (cached) {
        pen.fillStyle = old;
        pen.fillRect(x, y + h * (1 - held - cached), w, h * cached);
      }
      const stripes = readers.slice(0, MAX_STRIPES), full = (h * held * map.fill[cell]) / 255;
      stripes.forEach((request, i) => {
        pen.fillStyle = colour(request.uid);
        const begin = (w * i) / stripes.length;
        pen.globalAlpha *= 0.3;
        pen.fillRect(x + begin, y + h * (1 - held), w / stripes.length, h * held - full);
        pen.globalAlpha /= 0.3;
        pen.fillRect(x + begin, y + h - full, w / stripes.length, full);
      });
      pen.restore();
      if (w > 13 && map.holders[cell] > 1) {
        pen.font = `600 ${Math.round(h * 0.42)}px system-ui, sans-serif`;
        pen.textAlign = "center";
        pen.textBaseline = "middle";
        pen.lineWidth = 3;
        pen.strokeStyle = style.getPropertyValue("--sheet");
        pen.strokeText(map.holders[cell], x + w / 2, y + h / 2);
        pen.fillStyle = ink;
        pen.fillText(map.holders[cell], x + w / 2, y + h / 2);
      }
      if (w > 9 && !held && !cached) {
        pen.strokeStyle = rule;
        pen.lineWidth = 1;
        pen.beginPath();
        pen.moveTo(x + w - fold, y);
        pen.lineTo(x + w - fold, y + fold);
        pen.lineTo(x + w, y + fold);
        pen.stroke();
      }
    }
    pen.globalAlpha = 1;
    if (this.at >= 0) {
      pen.strokeStyle = ink;
      pen.lineWidth = 2;
      pen.strokeRect((this.at % columns) * step - 1, Math.floor(this.at / columns) * rise - 1, w + 2, h + 2);
    }
  }

  cellAt(event) {
    if (!this.map) return -1;
    const { columns, step, rise } = this.layout(), box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / step), row = Math.floor((event.clientY - box.top) / rise);
    const cell = row * columns + column;
    return column >= 0 && column < columns && cell >= 0 && cell < this.map.cells ? cell : -1;
  }

  move(event) {
    if (!this.map) return;
    const { columns } = this.layout();
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    if (!step) return;
    event.preventDefault();
    this.point(this.at < 0 ? 0 : Math.max(0, Math.min(this.map.cells - 1, this.at + step)));
  }

  point(cell) {
    if (cell === this.at) return;
    this.at = cell;
    this.onPoint(cell < 0 ? [] : this.readers[cell]);
    this.tell();
    this.draw();
  }

  tell() {
    const words = this.at < 0 ? "Point at a block, or move over the map with the arrow keys." : this.describe(this.at);
    if (this.explain.textContent !== words) this.explain.textContent = words;
  }

  describe(cell) {
    const { map } = this, first = cell * map.span, count = Math.min(map.span, map.numBlocks - first);
    const names = this.readers[cell].map((request) => request.id || `request ${request.uid}`);
    const listed = names.slice(0, 3).join(", ") + (names.length > 3 ? " and others" : "");
    if (map.span > 1) {
      const parts = [[map.held[cell], "in use"], [map.cached[cell], "cached"], [map.withdrawn[cell], "out of use"]];
      const found = parts.filter(([n]) => n).map(([n, what]) => `${n} ${what}`).join(", ");
      return `Blocks ${first} to ${first + count - 1}: ${found || "all free"}${listed && `; of ${listed}`}.`;
    }
    if (map.withdrawn[cell]) return `Block ${first}: out of use, because its bookkeeping was found wrong.`;
    if (map.holders[cell] > 1)
      return `Block ${first}: shared by ${map.holders[cell]} requests whose prompts begin alike (${listed}). It is kept once.`;
    if (map.held[cell]) {
      const tokens = Math.round((map.fill[cell] * map.size) / 255);
      const page = [...(this.readers[cell][0]?.places ?? [])].indexOf(cell) + 1;
      const where = page ? `, as the ${page}${["st", "nd", "rd"][page % 100 - page % 10 !== 10 ? (page % 10) - 1 : 9] ?? "th"} of its block table` : "";
      return `Block ${first}: used by ${listed || "a request"}${where}; ${tokens} of ${map.size} tokens are filled.`;
    }
    if (map.cached[cell]) return `Block ${first}: cached. Nobody uses it, but a prompt that begins as this one did would find it.`;
    return `Block ${first}: free.`;
  }
}
