"""What every parser of answers is: text in, in pieces of any size; content, reasoning and tool calls out.

An `OutputParser` reads one answer. `feed` takes the next piece of its text and returns what can be told by now;
`finish`, once, returns the rest. Three promises, which the tests check for every format over every split and every
truncation of texts:

- What the deltas say, put together, depends on the text alone, never on how it was cut.
- Nothing is lost and nothing raises. What is not a call of the format is content. A call is told as soon as its name
  is known and its arguments begin; if they go wrong later, it keeps what was valid, and the rest is content.
- Arguments are the JSON text that the model wrote, where the format writes JSON.

White space next to a marker (around calls, inside and after the reasoning) belongs to the format and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from octavo.text.parsing import forms
from octavo.text.parsing.forms import Demand, Form, Tool
from octavo.text.parsing.scanner import Delta, Kind, Scanner, Step, call_id

__all__ = ["Call", "Delta", "Demand", "Kind", "OutputParser", "Parsed", "Thinking", "Tool"]


class Call(NamedTuple):
    id: str
    name: str
    arguments: str


class Parsed:
    """What deltas say, put together."""

    def __init__(self) -> None:
        self._texts: dict[Kind, list[str]] = {"content": [], "reasoning": []}
        self._calls: list[tuple[str, str, list[str]]] = []

    def add(self, delta: Delta) -> None:
        if delta.kind != "tool_call":
            self._texts[delta.kind].append(delta.text)
        elif delta.id is not None and delta.name is not None:
            self._calls.append((delta.id, delta.name, [delta.text]))
        else:
            self._calls[delta.index][2].append(delta.text)

    @property
    def content(self) -> str:
        return "".join(self._texts["content"])

    @property
    def reasoning(self) -> str:
        return "".join(self._texts["reasoning"])

    @property
    def calls(self) -> list[Call]:
        return [Call(id, name, "".join(arguments)) for id, name, arguments in self._calls]


@dataclass(frozen=True, slots=True)
class Thinking:
    """What stands around the reasoning. It is `implied` by formats that leave the first marker out."""

    begin: str
    end: str
    implied: bool = False


class OutputParser:
    """An answer without calls; subclasses are formats of calls.

    `tools` are the functions that may be called; with none, calls are content. `thinking` is how reasoning is marked,
    and `prompt` the prompt, which may have begun it already. `hidden` are special tokens that are not to be shown.
    """

    openers: ClassVar[tuple[str, ...]] = ()  # what may stand before a call, anywhere in the content
    starts: ClassVar[tuple[str, ...]] = ()  # what may begin a call, but only where content begins
    markers: ClassVar[tuple[str, ...]] = ()  # all that the format's text is made of: kept if they are special tokens

    def __init__(
        self,
        tools: Sequence[Tool] = (),
        thinking: Thinking | None = None,
        prompt: str = "",
        hidden: frozenset[str] = frozenset(),
    ) -> None:
        self.tools = {tool["name"]: tool for tool in tools}
        self.thinking = thinking
        self.thinks = thinking is not None and (thinking.implied or prompt[-64:].rstrip().endswith(thinking.begin))
        kept = {*self.markers, *((thinking.begin, thinking.end) if thinking else ())}
        self._scanner = Scanner(hidden & kept, self.new_id)
        self._parsing = self.parse(self._scanner)
        self._raw = Scanner()
        self._shown: list[str] = []
        self._stripping = self._strip(tuple(sorted(hidden - kept))) if hidden - kept else None

    def feed(self, text: str) -> list[Delta]:
        """What can be told now that the answer goes on with `text`."""
        return self._advance(text, ended=False)

    def finish(self) -> list[Delta]:
        """What is left to be told, now that the answer has ended; to be called once."""
        return self._advance("", ended=True)

    def new_id(self) -> str:
        return call_id()

    def parse(self, s: Scanner) -> Step[None]:
        """The whole answer: what a format overrides that has no content outside of markers."""
        if self.thinks:
            yield from self._reason(s)
            yield from s.space()
            s.drop()
        begins = (self.thinking.begin,) if self.thinking else ()
        starts, openers = (*begins, *self.starts), self.openers
        if not self.tools:
            starts, openers = begins, ()
        fresh = True  # content begins here
        yield from s.space()
        while True:
            found = (yield from s.accept(*starts)) if fresh and starts else ""
            found = found or (yield from s.until(openers, s.content))
            if not found:
                return s.restore()
            if found in begins:
                yield from self._reason(s)
            else:
                yield from self.call(s, found)
            fresh = not s.untold.strip()
            if fresh:
                yield from s.space()
                s.drop()
            else:
                s.restore()

    def call(self, s: Scanner, opener: str) -> Step[None]:
        """Reads what follows `opener`, the end of the untold text. What it leaves untold is content."""
        raise NotImplementedError

    def form(self, demand: Demand | None, content: Form | None = None) -> Form | None:
        """The grammar of the answer, as a structural tag: of its calls, if there is a demand, and of its content, if
        that has a form, behind the reasoning. None if this format's calls cannot be enforced."""
        calls = self.calls_form(demand) if demand is not None else None
        if demand is None or calls is None:
            if demand is not None or content is None:
                return None
            body = content
        elif demand.required:
            body = calls
        elif content is not None:
            body = forms.either(calls, content)
        elif triggers := forms.triggers(calls, self.openers):
            body = forms.triggered(calls, triggers, demand.parallel)
        else:
            starts = re.escape("".join(start[0] for start in self.starts))
            body = forms.either(calls, forms.regex(rf"\s*([^\s{starts}](.|\n)*)?"))
        if self.thinking is None:
            return body
        reasoning = forms.free("" if self.thinks else self.thinking.begin, self.thinking.end)
        reasoning = forms.sequence(reasoning, forms.regex(r"\s{0,4}"))
        return forms.sequence(reasoning if self.thinks else forms.optional(reasoning), body)

    def calls_form(self, demand: Demand) -> Form | None:
        """The grammar of calls and nothing else: tags, one or `several`, that begin with one of the openers."""
        return None

    def _reason(self, s: Scanner) -> Step[None]:
        assert self.thinking is not None
        yield from s.space()
        s.drop()
        yield from s.until((self.thinking.end,), s.reasoning)
        s.drop()

    def _strip(self, hidden: tuple[str, ...]) -> Step[None]:
        """Shows the text without the special tokens that mean nothing to the format."""
        raw = self._raw
        while True:
            found = yield from raw.until(hidden, self._shown.append)
            self._shown.append(raw.untold.removesuffix(found))
            raw.drop()
            if not found:
                return

    def _advance(self, text: str, ended: bool) -> list[Delta]:
        if self._stripping is not None:
            _resume(self._stripping, self._raw, text, ended)
            text = "".join(self._shown)
            self._shown.clear()
        _resume(self._parsing, self._scanner, text, ended)
        return self._scanner.told()


def _resume(step: Step[None], scanner: Scanner, text: str, ended: bool) -> None:
    scanner.push(text)
    scanner.ended = ended
    with suppress(StopIteration):
        next(step)
