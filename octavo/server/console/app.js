// The console: looks at the engine a few times a second while somebody can see it, and holds a conversation.

import { call, json, key } from "./api.js";
import { CacheMap } from "./cache-map.js";
import { Chat } from "./chat.js";
import { forget, isDark } from "./colours.js";
import { Figures } from "./figures.js";
import { Requests } from "./requests.js";
import { make } from "./text.js";

const LOOK_MS = 250, LOST_MS = 1500;
const READERS = ["the moon", "a bear", "a garden", "an old clock", "a ship", "the rain"];
const PAGE = "You tell short stories. A story begins with someone who wants something, goes on with what is in the way, " +
  "and ends when it is found or given up. Use plain words and short sentences. Say where it happens and what the weather " +
  "is like. Let someone speak. Let something small be important. Do not explain what the story means. ";
const WORDS = { ready: "ready", loading: "loading the model", stalled: "makes no progress", restarting: "engine is restarting",
  draining: "shutting down", gone: "server cannot be reached", locked: "needs a key" };

const $ = (id) => document.getElementById(id);
const explain = $("explain");
const requests = new Requests($("requests").tBodies[0], (request) => map.light(request));
const map = new CacheMap($("map"), explain, (readers) => requests.lit(readers));
const figures = new Figures();

// -- the key

let waiting = [];
function askKey(then) {
  if (then) waiting.push(then);
  const dialog = $("key-dialog");
  if (dialog.open) return;
  $("key").value = "";
  dialog.returnValue = "";
  $("key-why").textContent = key.get() ? "The key that this tab had was not accepted." : "It is kept until this tab is closed, and sent to this server only.";
  dialog.showModal();
}
$("key-button").addEventListener("click", () => askKey());
$("key-dialog").addEventListener("close", () => {
  const then = waiting;
  waiting = [];
  if ($("key-dialog").returnValue !== "ok") return;
  key.set($("key").value);
  chat.models().catch(() => {});
  then.forEach((each) => each());
});
const chat = new Chat(askKey);

// -- light and dark

function theme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = name === "dark" ? "Light" : "Dark";
  map.draw();
}
const system = matchMedia("(prefers-color-scheme: dark)");
theme(localStorage.getItem("octavo-theme") ?? (system.matches ? "dark" : "light"));
system.addEventListener("change", () => localStorage.getItem("octavo-theme") ?? theme(system.matches ? "dark" : "light"));
$("theme").addEventListener("click", () => {
  const name = isDark() ? "light" : "dark";
  localStorage.setItem("octavo-theme", name);
  theme(name);
});

// -- the engine

let known = ""; // the engine whose facts are shown
function facts({ model, version, device }) {
  const label = JSON.stringify([model, version, device]);
  if (label === known || !device) return;
  known = label;
  $("about").textContent = `${model} on ${device.name}, ${device.dtype} · up to ${device.max_num_seqs} at once, ${device.max_model_len.toLocaleString("en")} tokens each · ${version}`;
  $("ledger").tBodies[0].replaceChildren(...device.ledger.map(([name, size]) =>
    make("tr", {}, make("th", { scope: "row", textContent: name }), make("td", { textContent: size }))));
  chat.models().catch(() => {});
}

function paint(picture, numBlocks) {
  forget(new Set(picture.running.map(({ uid }) => uid)));
  map.take(picture, numBlocks);
  requests.take(picture);
  figures.take(picture, numBlocks);
  const { span, holders, held } = map.map;
  const shared = holders.reduce((sum, each, cell) => sum + (each > 1 ? Math.min(held[cell], span) : 0), 0);
  const leaf = span > 1 ? `, a leaf for ${span}` : "";
  $("map-size").textContent = `${numBlocks.toLocaleString("en")} blocks of ${picture.block_size} tokens${leaf}`;
  $("block-size").textContent = picture.block_size;
  const counts = { free: picture.free_blocks, held: picture.held_blocks, shared, cached: picture.cached_blocks };
  for (const [name, count] of Object.entries(counts)) $(`n-${name}`).textContent = (span > 1 && name === "shared" ? "up to " : "") + count.toLocaleString("en");
  const { num_running: running, num_waiting: queued } = picture;
  $("counts").textContent = `${running} running, ${queued} waiting${picture.pace.preemptions ? `, ${picture.pace.preemptions} preempted so far` : ""}`;
  $("idle").hidden = running + queued > 0;
  $("requests").hidden = !(running + queued);
  $("map").dataset.seen = JSON.stringify(counts);
}

function say(state) {
  const pill = $("status");
  if (pill.dataset.state === state && pill.textContent === WORDS[state]) return;
  pill.dataset.state = state;
  pill.textContent = WORDS[state];
}

async function look() {
  let pause = LOOK_MS;
  try {
    if (document.hidden || $("key-dialog").open) return;
    const state = await json("v1/octavo/state");
    say(state.engine);
    facts(state);
    if (state.picture) paint(state.picture, state.device.num_blocks);
  } catch (error) {
    pause = LOST_MS;
    if (error.status === 401) {
      say("locked");
      askKey();
    } else say("gone");
  } finally {
    setTimeout(look, pause);
  }
}
look();

// -- readers of one page

$("try").addEventListener("click", async () => {
  $("try").disabled = true;
  try {
    await Promise.all(READERS.map(async (about, i) => {
      if (i) await new Promise((done) => setTimeout(done, 500 + 150 * i)); // the first one's blocks can be hit when they are written
      const messages = [{ role: "system", content: PAGE }, { role: "user", content: `Tell me a story about ${about}.` }];
      const body = { messages, max_tokens: 400 + 80 * i, ignore_eos: true, temperature: 1, model: $("model").value || undefined };
      await (await call("v1/chat/completions", { body, id: `reader-${i + 1}-${Date.now().toString(36)}` })).json();
    }));
  } catch (error) {
    chat.fail(error);
  } finally {
    $("try").disabled = false;
  }
});
