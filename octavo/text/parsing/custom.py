"""Custom tools: what they are given is text, which may have a grammar, and not JSON with a schema.

To the model such a tool is a function of one string, `input`, because that is what formats of calls can write. Its text
is read out of the arguments as they come.
"""

from __future__ import annotations

import re
from typing import Any

from octavo.text.parsing.scanner import Delta
from octavo.text.parsing.values import unquote

INPUT = "input"
_BEGIN = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_MAY_BEGIN = re.compile(r'\s*(\{\s*("(i(n(p(u(t("\s*(:\s*"?)?)?)?)?)?)?)?)?)?')
# All that can be decoded now: a half of a pair waits for the other.
_WHOLE = re.compile(
    r"""(?:[^"\\]|\\[^u]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}
    |\\u[dD][89abAB][0-9a-fA-F]{2}(?=[^\\]|\\[^u])|\\u(?![dD][89abAB])[0-9a-fA-F]{4})*""",
    re.VERBOSE,
)
_CONTROL = re.compile(r"[\x00-\x1f]")


def as_function(name: str, description: str | None, syntax: str | None, definition: str | None) -> dict[str, Any]:
    """The function that the model is told of. `grammar`, if there is one, is (syntax, definition)."""
    about = "The tool's input: any text."
    if syntax is not None:
        about = f"The tool's input: text that matches this {syntax} grammar:\n{definition}"
    parameters = {
        "type": "object",
        "properties": {INPUT: {"type": "string", "description": about}},
        "required": [INPUT],
        "additionalProperties": False,
    }
    return {"name": name, **({"description": description} if description else {}), "parameters": parameters}


class InputReader:
    """The text that a call's arguments hold; what is no object with `input` is taken as it is."""

    def __init__(self) -> None:
        self._left = ""
        self._state = "before"  # or "in" the text, "after" it, or "raw"

    def feed(self, arguments: str, ended: bool = False) -> str:
        self._left += arguments
        if self._state == "before":
            begin = _BEGIN.match(self._left)
            if begin is not None:
                self._state, self._left = "in", self._left[begin.end() :]
            elif ended or not _MAY_BEGIN.fullmatch(self._left):
                self._state = "raw"
        if self._state == "raw":
            text, self._left = self._left, ""
            return text
        if self._state != "in":
            return ""
        found = _WHOLE.match(self._left)
        assert found is not None
        self._left = self._left[found.end() :]
        if self._left.startswith('"'):
            self._state = "after"
        text = _CONTROL.sub(lambda char: f"\\u{ord(char[0]):04x}", found[0])
        return unquote(f'"{text}"')


class Inputs:
    """The calls of one answer, as deltas: those of custom tools with the text that they are given."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._readers: dict[int, InputReader] = {}
        self._open: int | None = None

    def custom(self, index: int) -> bool:
        return index in self._readers

    def read(self, told: list[Delta], ended: bool) -> list[Delta]:
        found: list[Delta] = []
        for delta in told:
            if delta.kind != "tool_call" or delta.id is not None:
                self._close(found)
            if delta.name in self._names:
                self._readers[delta.index] = InputReader()
                self._open = delta.index
            if delta.kind == "tool_call" and delta.index in self._readers:
                delta.text = self._readers[delta.index].feed(delta.text)
                if not delta.text and delta.id is None:
                    continue
            found.append(delta)
        if ended:
            self._close(found)
        return found

    def _close(self, found: list[Delta]) -> None:
        """The call that is open is complete."""
        text = self._readers[self._open].feed("", ended=True) if self._open is not None else ""
        if text and self._open is not None:
            found.append(Delta("tool_call", text, self._open))
        self._open = None
