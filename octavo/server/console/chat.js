// A conversation: what was said, the answer as it comes, how it is stopped, and what went wrong.

import { json, stream } from "./api.js";
import { make, render } from "./text.js";
import { tint, watch } from "./tokens.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];

export class Chat {
  constructor(askKey) {
    this.askKey = askKey;
    this.said = []; // {role, content}
    this.stopper = null;
    $("form").addEventListener("submit", (event) => (event.preventDefault(), this.send()));
    $("say").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send();
      }
    });
    $("stop").addEventListener("click", () => this.stopper?.abort());
    $("clear").addEventListener("click", () => this.clear());
    $("probabilities").addEventListener("change", () => this.showDoubt());
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.stopper?.abort());
    this.showDoubt();
  }

  get shown() {
    return $("probabilities").checked;
  }

  showDoubt() {
    $("messages").classList.toggle("shows", this.shown);
  }

  clear() {
    this.stopper?.abort();
    this.said = [];
    $("notice").hidden = true;
    $("messages").replaceChildren($("welcome") ?? "");
    $("say").focus();
  }

  async models() {
    const { data } = await json("v1/models");
    $("model").replaceChildren(...data.map(({ id }) => make("option", { value: id, textContent: id })));
  }

  send() {
    const text = $("say").value.trim();
    if (!text || this.stopper) return;
    $("say").value = "";
    $("welcome")?.remove();
    this.said.push({ role: "user", content: text });
    this.add("user", "You").text.textContent = text;
    this.answer();
  }

  add(role, who) {
    const text = make("div", { className: "text" });
    const doing = make("div", { className: "doing" });
    const box = make("article", { className: `message ${role}` }, make("p", { className: "who", textContent: who }), text, doing);
    box.setAttribute("aria-label", who);
    $("messages").append(box);
    box.scrollIntoView({ block: "end" });
    return { box, text, doing };
  }

  body() {
    const messages = [...this.said];
    if ($("system").value.trim()) messages.unshift({ role: "system", content: $("system").value });
    const body = { messages, stream: true, stream_options: { include_usage: true } };
    if ($("model").value) body.model = $("model").value;
    for (const name of NUMBERS) if ($(name).value !== "") body[name] = Number($(name).value);
    return this.shown ? { ...body, logprobs: true, top_logprobs: 5 } : body;
  }

  async answer() {
    $("notice").hidden = true;
    const place = this.add("assistant", $("model").value || "Answer");
    const found = { content: "", reasoning: "", entries: [], reason: null, usage: null };
    const entries = found.entries;
    watch(place.text, entries, () => this.shown, (words) => ($("announce").textContent = words));
    this.stopper = new AbortController();
    this.busy(place, true);
    let due = false;
    const draw = () => ((due = false), this.draw(place, found));
    try {
      for await (const chunk of stream("v1/chat/completions", { body: this.body(), signal: this.stopper.signal })) {
        const choice = chunk.choices[0];
        if (chunk.usage) found.usage = chunk.usage;
        if (!choice) continue;
        found.content += choice.delta.content ?? "";
        found.reasoning += choice.delta.reasoning ?? "";
        if (!choice.delta.reasoning) entries.push(...(choice.logprobs?.content ?? []));
        found.reason = choice.finish_reason ?? found.reason;
        if (!due) due = Boolean(requestAnimationFrame(draw));
      }
    } catch (error) {
      if (error.name === "AbortError") found.reason = "stopped";
      else this.fail(error);
    } finally {
      this.stopper = null;
      this.busy(place, false);
    }
    if (found.content || found.reason) this.complete(place, found);
    else place.box.remove();
  }

  busy(place, is) {
    place.box.classList.toggle("busy", is);
    place.box.setAttribute("aria-busy", is);
    $("send").hidden = is;
    $("stop").hidden = !is;
  }

  draw({ box, text }, { content, reasoning, entries }) {
    const log = $("messages");
    const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    if (reasoning) {
      let fold = box.querySelector(".thinking");
      if (!fold) {
        fold = make("details", { className: "thinking" }, make("summary", { textContent: "Reasoning" }), make("div"));
        text.before(fold);
      }
      fold.lastChild.textContent = reasoning;
    }
    render(text, content, entries.map((entry) => entry.token));
    tint(text, entries);
    if (follows) log.scrollTop = log.scrollHeight;
  }

  complete(place, found) {
    this.draw(place, found);
    this.said.push({ role: "assistant", content: found.content });
    const tokens = found.usage?.completion_tokens ?? found.entries.length;
    const why = { length: "cut at the limit", stopped: "stopped" }[found.reason];
    const note = [tokens ? `${tokens} tokens` : "", why].filter(Boolean).join(", ");
    const copy = make("button", { type: "button", className: "plain", textContent: "Copy" });
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(found.content);
      copy.textContent = "Copied";
    });
    const again = make("button", { type: "button", className: "plain regenerate", textContent: "Again" });
    again.setAttribute("aria-label", "Answer again");
    again.addEventListener("click", () => this.again(place));
    document.querySelectorAll(".regenerate").forEach((each) => each.remove());
    place.doing.append(make("span", { textContent: note }), copy, again);
    if (found.entries.length) {
      Object.assign(place.text, { tabIndex: 0 });
      place.text.setAttribute("role", "group");
      place.text.setAttribute("aria-label", "Answer; the arrow keys go through its tokens");
    }
    $("announce").textContent = found.content;
    place.box.scrollIntoView({ block: "nearest" });
  }

  again(place) {
    if (this.stopper) return;
    this.said.pop();
    place.box.remove();
    this.answer();
  }

  fail(error) {
    if (error.status === 401) this.askKey(() => this.retry());
    const retry = make("button", { type: "button", textContent: "Try again" });
    retry.addEventListener("click", () => this.retry());
    const away = make("button", { type: "button", textContent: "Dismiss" });
    away.addEventListener("click", () => ($("notice").hidden = true));
    const facts = [error.code, error.param && `field ${error.param}`, error.requestId && `request ${error.requestId}`];
    $("notice").replaceChildren(
      make("p", {}, make("strong", { textContent: error.status === 503 ? "Not now" : "That did not work" }), error.message),
      make("p", { className: "fine", textContent: facts.filter(Boolean).join(" · ") }), retry, away);
    $("notice").hidden = false;
  }

  retry() {
    $("notice").hidden = true;
    if (!this.stopper && this.said.at(-1)?.role === "user") this.answer();
  }
}
