"""Calls that are bare JSON, without any marker: those of Llama 3, and of models that were taught no format.

An answer may be JSON for other reasons. So a call stands where content begins, and names a tool of the request.
"""

from __future__ import annotations

from octavo.text.parsing.base import OutputParser
from octavo.text.parsing.forms import Demand, Form, several, tag
from octavo.text.parsing.scanner import Scanner, Step
from octavo.text.parsing.values import call_object, call_objects

_FENCE = "```"
_CLOSERS = {_FENCE: _FENCE, "<tool_calls>": "</tool_calls>", "<TOOLCALL>": "</TOOLCALL>"}


class Llama3(OutputParser):
    """{"name": …, "parameters": {…}}, one or several with semicolons between, perhaps after <|python_tag|>."""

    openers = ("<|python_tag|>",)
    starts = ("{",)
    markers = ("<|python_tag|>",)

    def calls_form(self, demand: Demand) -> Form:
        tags = [
            tag(f'{{"name": "{name}", "parameters": ', demand.arguments(tool), "}") for name, tool in self.tools.items()
        ]
        return several(tags, "; ", demand.parallel)

    def call(self, s: Scanner, opener: str) -> Step[None]:
        if opener == "{":
            s.give_back("{")
        yield from s.space()
        while (yield from call_object(s, self.tools.__contains__)):
            yield from s.space()
            if not (yield from s.accept(";")):
                return
            yield from s.space()


class PlainJson(OutputParser):
    """An object or a list of them, perhaps fenced as Markdown has it, or announced as Granite, Phi and others do."""

    openers = ("<|tool_call|>", "<function_call>", "<tool_calls>", "<TOOLCALL>", "functools")
    starts = ("{", "[", _FENCE)
    markers = ("<|tool_call|>", "<tool_calls>", "</tool_calls>", "<TOOLCALL>", "</TOOLCALL>")

    def calls_form(self, demand: Demand) -> Form:
        begin = next((opener for opener in self.openers if opener in demand.template), "")
        end = _CLOSERS.get(begin, "")
        before, after = ("", "") if demand.parallel else (begin, end)
        tags = [
            tag(f'{before}{{"name": "{name}", "arguments": ', demand.arguments(tool), "}" + after)
            for name, tool in self.tools.items()
        ]
        calls = several(tags, ", ", demand.parallel)
        return tag(begin + "[", calls, "]" + end) if demand.parallel else calls

    def call(self, s: Scanner, opener: str) -> Step[None]:
        if opener == _FENCE:
            yield from s.accept("json")
        elif opener in self.starts:
            s.give_back(opener)
        yield from s.space()
        closer = _CLOSERS.get(opener)
        if (yield from call_objects(s, self.tools.__contains__)) and closer and not s.untold:
            yield from s.space()
            if (yield from s.accept(closer)):
                s.drop()
