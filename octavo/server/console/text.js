// A model's text as elements, never as markup: fences, lists, bold and code, nothing else.
// `pieces` are the tokens that the text consists of; each becomes a span that knows its place among them.

export function make(name, properties = {}, ...children) {
  const found = Object.assign(document.createElement(name), properties);
  found.append(...children);
  return found;
}

export function render(parent, text, pieces) {
  const ends = [];
  for (const piece of pieces) {
    const at = ends.at(-1) ?? 0;
    ends.push(at + (text.startsWith(piece, at) ? piece.length : 0)); // the token that ends an answer is not in its text
  }

  function emit(into, start, end) {
    let at = ends.findIndex((each) => each > start);
    for (; at >= 0 && start < end && at < ends.length; at += 1) {
      const stop = Math.min(end, ends[at]);
      const span = make("span", { className: "token", textContent: text.slice(start, stop) });
      span.dataset.token = at;
      into.append(span);
      start = stop;
    }
    if (start < end) into.append(text.slice(start, end));
  }

  function inline(into, start, end) {
    const marks = /\*\*([^*\n]+)\*\*|`([^`\n]+)`/g;
    for (const found of text.slice(start, end).matchAll(marks)) {
      const begin = start + found.index, size = found[1] ? 2 : 1;
      emit(into, start + (inline.done ?? 0), begin);
      const inner = make(found[1] ? "strong" : "code");
      emit(inner, begin + size, begin + found[0].length - size);
      into.append(inner);
      inline.done = begin + found[0].length - start;
    }
    emit(into, start + (inline.done ?? 0), end);
    inline.done = 0;
  }

  const blocks = document.createDocumentFragment();
  let fence = null, list = null, paragraph = null, at = 0;
  for (const line of text.split("\n")) {
    const end = at + line.length;
    if (line.startsWith("```")) {
      fence = fence ? null : make("pre");
      if (fence) blocks.append(fence);
      list = paragraph = null;
    } else if (fence) {
      if (fence.hasChildNodes()) fence.append("\n");
      emit(fence, at, end);
    } else if (/^[-*] /.test(line)) {
      if (!list) blocks.append((list = make("ul")));
      paragraph = null;
      const item = make("li");
      inline(item, at + 2, end);
      list.append(item);
    } else if (!line.trim()) {
      list = paragraph = null;
    } else {
      list = null;
      if (paragraph) paragraph.append("\n");
      else blocks.append((paragraph = make("p")));
      inline(paragraph, at, end);
    }
    at = end + 1;
  }
  parent.replaceChildren(blocks);
}
