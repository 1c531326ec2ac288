"""Llama 4, LFM2 and others: [name(key="value", …), other()], a Python list of calls with literals as arguments; and
OLMo 3, with <function_calls>, a call on each line, </function_calls>.

The arguments are not JSON: so each call is told whole, when it is complete, with its arguments as JSON.
"""

from __future__ import annotations

import ast
import re
import warnings

from octavo.text.parsing.base import OutputParser
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


def _arguments(text: str) -> str | None:
    """JSON of `(key=literal, …)`; None if it is anything else. Nothing is evaluated but literals."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            call = ast.parse(f"f{text}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            return None
        call = _JsonNames().visit(call)
        return dumps({str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords})
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None
