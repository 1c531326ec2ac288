"""JSON in a text that arrives in pieces: strings, whole values, and calls written as objects."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from octavo.text.parsing.scanner import Emit, Scanner, Step

NAMES = ("name", "function", "tool_name")
ARGUMENTS = ("arguments", "parameters", "args")

_CHARACTERS = re.compile(r'[^"\\]*')
_DIGITS = re.compile(r"[-+.0-9eE]*")
_LETTERS = re.compile(r"[a-z]*")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_CONTROL = re.compile(r"[\x00-\x1f]")
_HEX = re.compile(r"[0-9a-fA-F]?")
_ESCAPED = re.compile(r'["\\/bfnrtu]?')
_LITERALS = ("true", "false", "null")
_CLOSING = {"{": "}", "[": "]"}


def string(s: Scanner, emit: Emit) -> Step[bool]:
    """Takes a string. Line breaks and the like, which models forget to escape, are emitted escaped."""
    if not (yield from s.accept('"')):
        return False
    emit('"')
    while True:
        yield from s.run(_CHARACTERS, lambda text: emit(_CONTROL.sub(_escape, text)))
        if (yield from s.accept('"')):
            emit('"')
            return True
        if not (yield from s.accept("\\")):
            return False
        escape = "\\" + (yield from s.take(_ESCAPED))
        if escape == "\\u":
            for _ in range(4):
                escape += yield from s.take(_HEX)
        if s.at_end or len(escape) == (6 if escape.startswith("\\u") else 2):  # what is cut off is not wrong
            emit(escape)
        else:
            return False


def value(s: Scanner, emit: Emit) -> Step[bool]:
    """Takes one value of any kind. False, with the rest not taken, at the first character that cannot belong to it."""
    open_: list[str] = []  # the brackets that are open
    want = "value"  # or "key", "comma"; "first" after a bracket, where a value or key or the end may follow
    while True:
        emit((yield from s.space()))
        char = yield from s.peek()
        if open_ and want in ("first", "comma") and char == _CLOSING[open_[-1]]:
            yield from s.accept(char)
            open_.pop()
            emit(char)
        elif want == "comma":
            if not (yield from s.accept(",")):
                return False
            emit(",")
            want = "key" if open_[-1] == "{" else "value"
            continue
        elif want == "key" or (want == "first" and open_[-1] == "{"):
            if not (yield from _key(s, emit)):
                return False
            want = "value"
            continue
        elif char and char in _CLOSING:
            yield from s.accept(char)
            open_.append(char)
            emit(char)
            want = "first"
            continue
        elif not (yield from _scalar(s, emit, char)):
            return False
        if not open_:
            return True
        want = "comma"


def _key(s: Scanner, emit: Emit) -> Step[bool]:
    if not (yield from string(s, emit)):
        return False
    emit((yield from s.space()))
    if not (yield from s.accept(":")):
        return False
    emit(":")
    return True


def _scalar(s: Scanner, emit: Emit, char: str) -> Step[bool]:
    if char == '"':
        return (yield from string(s, emit))
    if char.isalpha():
        text = yield from s.run(_LETTERS)
        valid = text in _LITERALS or (s.at_end and any(literal.startswith(text) for literal in _LITERALS))
    else:
        text = yield from s.run(_DIGITS)
        valid = _NUMBER.fullmatch(text) is not None or (text != "" and s.at_end)
    if valid:
        emit(text)
    return valid


def held(s: Scanner, take: Callable[[Scanner, Emit], Step[bool]] = value) -> Step[str]:
    """Takes a value whole and leaves it untold; its JSON text, or "" if it is not valid."""
    parts: list[str] = []
    valid = yield from take(s, parts.append)
    return "".join(parts) if valid else ""


def unquote(text: str) -> str:
    """The string that a JSON string means; half a character becomes U+FFFD."""
    meant: str = json.loads(text)
    return meant.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def call_object(s: Scanner, known: Callable[[str], bool] = bool) -> Step[bool]:
    """Takes a call written as an object, {"name": …, "arguments": {…}}, in any order and with other keys beside.

    Tells it as soon as its name is there, if it is a `known` one, and its arguments begin. True if that came about:
    the rest of the object may still be wrong, and what is left untold then does not belong to the call.
    """
    name, arguments, begun = "", "", False
    if not (yield from s.accept("{")):
        return False
    while True:
        yield from s.space()
        key = yield from held(s, string)
        yield from s.space()
        if not key or not (yield from s.accept(":")):
            return begun
        yield from s.space()
        kind = unquote(key)
        if kind in NAMES and not name:
            text = yield from held(s, string)
            name = unquote(text) if text else ""
            if not known(name):
                return False
        elif kind in ARGUMENTS and name and not begun and (yield from s.peek()) == "{":
            s.begin_call(name)
            begun = True
            if not (yield from value(s, s.argue)):
                return True
        else:
            text = yield from held(s)
            if not text:
                return begun
            arguments = text if kind in ARGUMENTS else arguments
        yield from s.space()
        if (yield from s.accept("}")):
            break
        if not (yield from s.accept(",")):
            return begun
    if not begun and name:
        s.begin_call(name)
        s.argue(_object(arguments))
        begun = True
    if begun:
        s.drop()
    return begun


def call_objects(s: Scanner, known: Callable[[str], bool] = bool) -> Step[bool]:
    """Takes one call, or a list of them. True if there was one."""
    if not (yield from s.accept("[")):
        return (yield from call_object(s, known))
    yield from s.space()
    begun = False
    while (yield from call_object(s, known)):
        begun = True
        yield from s.space()
        if not (yield from s.accept(",")):
            if (yield from s.accept("]")):
                s.drop()
            break
        yield from s.space()
    return begun


def _object(arguments: str) -> str:
    """Arguments that are no object: missing, null, or the object's text in a string."""
    if arguments.startswith('"'):
        return unquote(arguments)
    return "{}" if arguments in ("", "null") else arguments


def dumps(value: Any) -> str:
    """JSON as it is sent; ValueError or TypeError for what JSON does not know."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _escape(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]
