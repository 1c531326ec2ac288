"""Llama 4, LFM2 and others: [name(key="value", …), other()], a Python list of calls with literals as arguments; and
OLMo 3, with <function_calls>, a call on each line, </function_calls>.

The arguments are not JSON: so each call is told whole, when it is complete, with its arguments as JSON.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping
from keyword import iskeyword

from octavo.text.parsing.base import OutputParser
from octavo.text.parsing.custom import INPUT
from octavo.text.parsing.forms import (
    Demand,
    Form,
    Tool,
    either,
    optional,
    property_form,
    schema,
    sequence,
    several,
    tag,
    text,
)
from octavo.text.parsing.scanner import Scanner, Step
from octavo.text.parsing.values import dumps

LIST, LIST_END = "<|python_start|>", "<|python_end|>"
LINES, LINES_END = "<function_calls>", "</function_calls>"
LFM, LFM_END = "<|tool_call_start|>", "<|tool_call_end|>"
_LONGEST = 1 << 16  # characters of a call: parsing takes some hundred bytes for each
_DEEPEST = 64
_CONSTANTS = {"true": True, "false": False, "null": None}
_NAME = re.compile(r"[\w.]*")
_PLAIN = re.compile(r"[^()\[\]{}'\"\\]*")
_IN_STRING = {quote: re.compile(f"[^{quote}\\\\]*") for quote in "'\""}


class Pythonic(OutputParser):
    openers = (LIST, LINES, LFM)
    starts = ("[",)
    markers = (LIST, LIST_END, LINES, LINES_END, LFM, LFM_END)

    def calls_form(self, demand: Demand) -> Form | None:
        tags = []
        for name, tool in self.tools.items():
            arguments = _arguments_form(tool, demand)
            if arguments is None or not _NAME.fullmatch(name):
                return None
            tags.append(tag(f"{name}(", arguments, ")"))
        begin = next((mark for mark in (LFM, LINES, LIST) if mark in demand.template), "")
        if begin == LINES:
            return tag(LINES + "\n", several(tags, "\n", demand.parallel), "\n" + LINES_END)
        end = {LFM: LFM_END, LIST: LIST_END}.get(begin, "")
        return tag(begin + "[", several(tags, ", ", demand.parallel), "]" + end)

    def call(self, s: Scanner, opener: str) -> Step[None]:
        yield from s.space()
        if opener in (LIST, LFM) and not (yield from s.accept("[")):
            return
        end = LINES_END if opener == LINES else "]"
        while True:
            yield from s.space()
            before = s.num_untold
            name = yield from s.run(_NAME)
            if name not in self.tools or not (yield from _brackets(s)):
                return
            arguments = _arguments(s.untold[before + len(name) :])
            if arguments is None:
                return
            s.begin_call(name)
            s.argue(arguments)
            yield from s.space()
            if (yield from s.accept(end)):
                break
            if opener != LINES and not (yield from s.accept(",")):
                return
        yield from s.accept(LIST_END, LFM_END)
        s.drop()


def _brackets(s: Scanner) -> Step[bool]:
    """Takes what stands between brackets, with them."""
    if (yield from s.peek()) != "(":
        return False
    depth = 0
    while True:
        yield from s.run(_PLAIN)
        char = yield from s.peek()
        if not char or depth > _DEEPEST or s.num_untold > _LONGEST:
            return False
        yield from s.accept(char)
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if not depth:
                return True
        elif char != "\\" and not (yield from _rest_of_string(s, char)):
            return False


def _rest_of_string(s: Scanner, quote: str) -> Step[bool]:
    while True:
        yield from s.run(_IN_STRING[quote])
        if (yield from s.accept(quote)):
            return True
        if not (yield from s.accept("\\")) or not (yield from s.accept((yield from s.peek()))):
            return False


class _JsonNames(ast.NodeTransformer):
    """JSON's names of constants, which models mix with Python's."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_CONSTANTS[node.id]) if node.id in _CONSTANTS else node


def _arguments_form(tool: Tool, demand: Demand) -> Form | None:
    """key=value, each at most once and in the order of the tool's schema; a value is JSON, which is Python but for the
    constants. None for keys that Python does not take."""
    found, param = tool.get("parameters") or {}, demand.params.get(tool["name"], "")
    held = demand.holds(tool)
    properties, required = found.get("properties") or {}, (held and found.get("required")) or ()
    if not isinstance(properties, Mapping) or any(not key.isidentifier() or iskeyword(key) for key in properties):
        return None
    if "grammar" in tool:
        return sequence(text(f"{INPUT}="), demand.input(tool))
    first = later = text("")  # from a key on: where none has come before, and where one has
    for key in reversed(properties):
        value = property_form(found, key, param) if held else schema(True)
        begun, goes_on = sequence(text(f"{key}="), value, later), sequence(text(f", {key}="), value)
        first = begun if key in required else either(begun, first)
        later = sequence(goes_on if key in required else optional(goes_on), later)
    return first


def _arguments(given: str) -> str | None:
    """JSON of `(key=literal, …)`; None if it is anything else. Nothing is evaluated but literals."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            call = ast.parse(f"f{given}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            return None
        call = _JsonNames().visit(call)
        return dumps({str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords})
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None
