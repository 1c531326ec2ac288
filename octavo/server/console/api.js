// Requests to the server, with the key of this tab; errors as they are shown.

const KEY = "octavo-key";
const ROOT = new URL(".", document.baseURI);

export class Refused extends Error {
  constructor(status, error, requestId) {
    super(error.message);
    Object.assign(this, { status, param: error.param, code: error.code, requestId });
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
};

export async function call(path, { body, signal, id } = {}) {
  const headers = {};
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  if (id) headers["x-request-id"] = id;
  const options = { headers, signal, cache: "no-store" };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  let answer;
  try {
    answer = await fetch(new URL(path, ROOT), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, { message: "The server cannot be reached.", code: "unreachable", param: null }, "");
  }
  if (answer.ok) return answer;
  const found = await answer.json().catch(() => ({}));
  const shape = found.error ?? { message: `The server said ${answer.status}.`, code: String(answer.status), param: null };
  throw new Refused(answer.status, shape, answer.headers.get("x-request-id") ?? "");
}

export const json = async (path, options) => (await call(path, options)).json();

// The events of a streamed answer, one object after the other; an error among them is raised.
export async function* stream(path, options) {
  const answer = await call(path, options);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Refused(0, { message: "The connection ended before the answer did.", code: "cut", param: null }, "");
    rest += value;
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const found = JSON.parse(data);
      if (found.error) throw new Refused(0, found.error, answer.headers.get("x-request-id") ?? "");
      yield found;
    }
  }
}
