"""Reading a text that arrives in pieces: what a parser can take from it, and what it tells of what it has taken.

A parser is a generator that reads as if the whole text were there; where the text ends before a question about it can
be answered, the generator is suspended until there is more, or until it is certain that there is none. So no answer
can depend on how the text was cut.

Text that was taken is either told or dropped; what is neither, yet, is "untold". A parser that finds that the text is
not what it took it for tells the untold text as content: nothing is lost, and nothing is read twice.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal, TypeVar

from octavo.text.stops import stop_automaton

T = TypeVar("T")
Step = Generator[None, None, T]
Emit = Callable[[str], None]
Kind = Literal["content", "reasoning", "tool_call"]

_SPACE = re.compile(r"\s*")


@dataclass(slots=True)
class Delta:
    """`text` is content, reasoning or the next part of a call's arguments. The first delta of a call, and no other,
    has its `id` and `name`; calls are counted from `index` 0."""

    kind: Kind
    text: str = ""
    index: int = 0
    id: str | None = None
    name: str | None = None


def call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class Scanner:
    """`hidden` are the special tokens that belong in no content; they never reach the text of a parser's formats."""

    def __init__(self, hidden: frozenset[str] = frozenset(), new_id: Callable[[], str] = call_id) -> None:
        self.ended = False
        self._text = ""
        self._start = 0  # of the untold text
        self._pos = 0  # of the text that was not taken yet
        self._told: list[Delta] = []
        self._calls = 0
        self._new_id = new_id
        self._hidden = re.compile("|".join(map(re.escape, sorted(hidden)))) if hidden else None

    # -- from outside

    def push(self, text: str) -> None:
        self._text = self._text[self._start :] + text
        self._pos -= self._start
        self._start = 0

    def told(self) -> list[Delta]:
        told, self._told = self._told, []
        return told

    # -- taking: these wait until the answer is certain

    def peek(self) -> Step[str]:
        """The next character, which is not taken; "" at the end."""
        while self._pos == len(self._text):
            if self.ended:
                return ""
            yield
        return self._text[self._pos]

    def run(self, pattern: re.Pattern[str], emit: Emit | None = None) -> Step[str]:
        """The longest run of characters of one kind: `pattern` is a starred class. `emit` gets it as it comes."""
        parts = []
        while True:
            found = pattern.match(self._text, self._pos)
            assert found is not None
            parts.append(found[0])
            self._pos = found.end()
            if emit is not None:
                emit(found[0])
            if self._pos < len(self._text) or self.ended:
                return "".join(parts)
            yield

    def space(self) -> Step[str]:
        return self.run(_SPACE)

    def take(self, pattern: re.Pattern[str]) -> Step[str]:
        """The next character, taken, if it is of a kind (`pattern` is an optional class), else ""."""
        yield from self.peek()
        found = pattern.match(self._text, self._pos)
        assert found is not None
        self._pos = found.end()
        return found[0]

    def accept(self, *literals: str) -> Step[str]:
        """The longest of `literals` that comes next, taken, or ""."""
        longest = max(map(len, literals))
        while True:
            rest = self._text[self._pos : self._pos + longest]
            if self.ended or not any(len(rest) < len(literal) and literal.startswith(rest) for literal in literals):
                found = max((literal for literal in literals if rest.startswith(literal)), key=len, default="")
                self._pos += len(found)
                return found
            yield

    def until(self, markers: tuple[str, ...], tell: Emit | None = None) -> Step[str]:
        """Takes the text up to the first of `markers` and the marker too, and returns it; "" at the end of the text.

        `tell` gets the text as it comes, but for white space that may be the last before the marker: this and the
        marker are left untold. Without `tell`, all is.
        """
        automaton, state, seen = stop_automaton(markers), 0, 0
        while True:
            state, end, found = automaton.scan(self._text[self._pos + seen :], state)
            end += self._pos + seen
            seen = len(found) if found else automaton.hold[state] * (not self.ended)
            if tell is not None and (text := self._text[self._start : end - seen].rstrip()):
                self._start = self._pos = self._start + len(text)
                tell(text)
            self._pos = end
            if found or self.ended:
                return found or ""
            self._pos -= seen
            yield

    def give_back(self, text: str) -> None:
        """`text`, the last that was taken, is the next to be taken."""
        self._pos -= len(text)

    # -- telling

    @property
    def at_end(self) -> bool:
        return self.ended and self._pos == len(self._text)

    @property
    def untold(self) -> str:
        return self._text[self._start : self._pos]

    @property
    def num_untold(self) -> int:
        return self._pos - self._start

    def drop(self) -> None:
        self._start = self._pos

    def restore(self) -> None:
        """What was taken was not what it seemed: it is content."""
        text = self.untold
        self.drop()
        self.content(self._hidden.sub("", text) if self._hidden else text)

    def content(self, text: str) -> None:
        self._tell("content", text)

    def reasoning(self, text: str) -> None:
        self._tell("reasoning", text)

    def begin_call(self, name: str) -> None:
        self._told.append(Delta("tool_call", "", self._calls, self._new_id(), name))
        self._calls += 1
        self.drop()

    def argue(self, text: str) -> None:
        """The arguments of the call that was begun last go on."""
        self._tell("tool_call", text, self._calls - 1)
        self.drop()

    def _tell(self, kind: Kind, text: str, index: int = 0) -> None:
        if not text:
            return
        last = self._told[-1] if self._told else None
        if last is not None and last.kind == kind and last.index == index:
            last.text += text
        else:
            self._told.append(Delta(kind, text, index))
