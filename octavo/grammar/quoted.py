r"""A Lark grammar of texts as one of what JSON writes for them between quotes: "\n" becomes "\\n", /[^x]/ all that may
be written for another character than x. So text with its own grammar may stand in a call, whose arguments are JSON.

The library's lexer looks ahead by one byte only, and could not tell which terminal a backslash begins. So, unless the
grammar has nothing that JSON escapes, every character becomes a lexeme, and every terminal a rule. What cannot be
rewritten is a GrammarError: %ignore, which would apply within words, and anchors and lookarounds.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as sre_parser  # type: ignore[attr-defined]
from typing import Any

from octavo.grammar.schema import GrammarError

_PARTS = re.compile(
    r"""(?P<comment>(?://|\#)[^\n]*)
    |(?P<range>"(?:[^"\\]|\\.)+"\s*\.\.\s*"(?:[^"\\]|\\.)+")
    |(?P<string>"(?:[^"\\\n]|\\.)*"i?)
    |(?P<regex>/(?:[^/\\\n]|\\.)+/[a-z]*)
    |(?P<special><[^>\n]*>|%\w+)
    |[^"/<%\#]+|.""",
    re.DOTALL | re.VERBOSE,
)
_IMPORT = re.compile(r"^[ \t]*%import[ \t]+common\.(\w+)(?:[ \t]*->[ \t]*(\w+))?[ \t]*$", re.MULTILINE)
_TERMINAL = re.compile(r"\b[A-Z][A-Z0-9_]*\b")
_COMMON = {
    "DIGIT": "/[0-9]/",
    "HEXDIGIT": "/[a-fA-F0-9]/",
    "INT": "/[0-9]+/",
    "SIGNED_INT": "/[+-]?[0-9]+/",
    "DECIMAL": r"/[0-9]+\.[0-9]*|\.[0-9]+/",
    "NUMBER": r"/([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?/",
    "SIGNED_NUMBER": r"/[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?/",
    "LCASE_LETTER": "/[a-z]/",
    "UCASE_LETTER": "/[A-Z]/",
    "LETTER": "/[A-Za-z]/",
    "WORD": "/[A-Za-z]+/",
    "CNAME": "/[_A-Za-z][_A-Za-z0-9]*/",
    "WS": r"/[ \t\f\r\n]+/",
    "WS_INLINE": r"/[ \t]+/",
    "CR": r"/\r/",
    "LF": r"/\n/",
    "NEWLINE": r"/(\r?\n)+/",
    "ESCAPED_STRING": r'/"([^"\\]|\\.)*"/',
}
_LAST = 0x10FFFF
_ESCAPED = (*range(0x20), ord('"'), ord("\\"))
_CLASSES = {"DIGIT": "0-9", "WORD": "0-9A-Z_a-z", "SPACE": "\t-\r - "}
Ranges = list[tuple[int, int]]


def quoted(lark: str) -> str:
    parts = [(found.lastgroup, found[0]) for found in _PARTS.finditer(_IMPORT.sub(_imported, lark))]
    written = [_written(kind, text) for kind, text in parts]
    if all("\\\\" not in each for (kind, _), each in zip(parts, written, strict=True) if kind in ("string", "regex")):
        return lark  # JSON escapes nothing of it
    for kind, text in parts:
        if kind == "special":
            raise GrammarError(f"{text[:40]} cannot stand in a grammar of a tool's input that JSON has to escape")
    return "".join(written)


def _imported(found: re.Match[str]) -> str:
    if found[1] not in _COMMON:
        raise GrammarError(f"common.{found[1]} cannot be imported into a grammar of a tool's input")
    return f"{found[2] or found[1]}: {_COMMON[found[1]]}"


def _written(kind: str | None, text: str) -> str:
    match kind:
        case "string":
            plain = text.removesuffix("i")
            codes = [ord(char) for char in _string(plain)]
            units = [_class([(c, c), *(_other_case(c, c) if text != plain else ())]) for c in codes]
            return f"( {' '.join(units)} )" if units else plain
        case "range":
            first, last = map(_string, re.split(r'(?<=")\s*\.\.\s*(?=")', text))
            if len(first) != 1 or len(last) != 1:
                raise GrammarError(f"{text} is not a range of characters")
            return _class([(ord(first), ord(last))])
        case "regex":
            body, _, flags = text[1:].rpartition("/")
            return f"( {_Regex(body, flags).written()} )"
        case "special" | "comment":
            return text
    return _TERMINAL.sub(lambda found: f"terminal_{found[0].lower()}", text)


def _string(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        raise GrammarError(f"{text[:40]} is not a string as JSON has it") from None


class _Regex:
    def __init__(self, pattern: str, flags: str) -> None:
        if set(flags) - {"i", "s"}:
            raise GrammarError(f"/{pattern[:40]}/{flags}: of flags, only i and s are supported")
        self.pattern, self.no_case, self.dot_all = pattern, "i" in flags, "s" in flags

    def written(self) -> str:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # what may mean a set of sets elsewhere
                found = sre_parser.parse(self.pattern.replace(r"\/", "/"))
            if found.state.flags & ~re.UNICODE:
                raise GrammarError(f"/{self.pattern[:40]}/: flags in it are not supported")
            return self._sequence(found)
        except (re.error, OverflowError, Warning) as error:
            raise GrammarError(f"/{self.pattern[:40]}/: {error}") from None

    def _sequence(self, items: Any) -> str:
        return " ".join(map(self._one, items)) or '""'

    def _one(self, item: tuple[Any, Any]) -> str:
        kind, value = item
        if kind is sre.LITERAL:
            return self._set([(value, value)])
        if kind is sre.NOT_LITERAL:
            return self._set([(value, value)], negated=True)
        if kind is sre.ANY:
            return _class([(0, _LAST)] if self.dot_all else _rest([(10, 10)]))
        if kind is sre.IN:
            negated = value[0][0] is sre.NEGATE
            return self._set([each for part in value[negated:] for each in self._ranges(part)], negated)
        if kind is sre.BRANCH:
            return f"( {' | '.join(map(self._sequence, value[1]))} )"
        if kind is sre.SUBPATTERN and not value[1] and not value[2]:
            return f"( {self._sequence(value[3])} )"
        if kind is sre.MAX_REPEAT:
            low, high, what = value
            most = "" if high is sre.MAXREPEAT else high
            count = {(0, ""): "*", (1, ""): "+", (0, 1): "?"}.get((low, most), f"{{{low},{most}}}")
            return f"( {self._sequence(what)} ){count}"
        raise GrammarError(f"/{self.pattern[:40]}/: anchors, flags in it, and lookarounds are not supported")

    def _ranges(self, part: tuple[Any, Any]) -> Iterator[tuple[int, int]]:
        kind, value = part
        if kind is sre.LITERAL:
            yield value, value
        elif kind is sre.RANGE:
            yield value
        else:  # \d, \w, \s and their opposites, of ASCII
            name = str(value).removeprefix("CATEGORY_")
            text = _CLASSES[name.removeprefix("NOT_")]
            found = [(ord(text[i]), ord(text[i + 2 if text[i + 1 : i + 2] == "-" else i])) for i in _starts(text)]
            yield from _rest(found) if name.startswith("NOT_") else found

    def _set(self, ranges: Ranges, negated: bool = False) -> str:
        if self.no_case:
            both = [(x, y) for low, high in ranges for x, y in _other_case(low, high)]
            ranges = ranges + both
        return _class(_rest(ranges) if negated else ranges)


def _starts(text: str) -> Iterator[int]:
    """Where the ranges and the single characters of a class begin."""
    i = 0
    while i < len(text):
        yield i
        i += 3 if text[i + 1 : i + 2] == "-" else 1


def _other_case(low: int, high: int) -> Iterator[tuple[int, int]]:
    for first, last, shift in ((65, 90, 32), (97, 122, -32)):
        if max(low, first) <= min(high, last):
            yield max(low, first) + shift, min(high, last) + shift


def _rest(ranges: Ranges) -> Ranges:
    """All characters that are in none of the ranges."""
    found, begin = [], 0
    for low, high in sorted(ranges):
        if low > begin:
            found.append((begin, low - 1))
        begin = max(begin, high + 1)
    return found + ([(begin, _LAST)] if begin <= _LAST else [])


def _class(ranges: Ranges) -> str:
    """What JSON writes for one of the characters."""
    others = _rest(ranges)
    plain = _rest(others + [(code, code) for code in _ESCAPED])
    escaped = [code for code in _ESCAPED if any(low <= code <= high for low, high in ranges)]
    options = [json.dumps(json.dumps(chr(code))[1:-1]) for code in escaped]
    if plain:
        options.insert(0, "/[" + "".join(f"\\x{{{low:x}}}-\\x{{{high:x}}}" for low, high in plain) + "]/")
    if not options:
        raise GrammarError("a class of no characters")
    return options[0] if len(options) == 1 else f"( {' | '.join(options)} )"
