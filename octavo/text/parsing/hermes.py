"""Hermes and Qwen: <tool_call>{"name": …, "arguments": {…}}</tool_call>, once for each call."""

from __future__ import annotations

import re

from octavo.text.parsing.base import OutputParser
from octavo.text.parsing.forms import Demand, Form, several, tag
from octavo.text.parsing.scanner import Scanner, Step
from octavo.text.parsing.values import call_object

_CLOSING = re.compile(r"[}\s]*")


class Hermes(OutputParser):
    openers = ("<tool_call>",)
    markers = ("<tool_call>", "</tool_call>")

    def calls_form(self, demand: Demand) -> Form:
        tags = [
            tag(f'<tool_call>\n{{"name": "{name}", "arguments": ', demand.arguments(tool), "}\n</tool_call>")
            for name, tool in self.tools.items()
        ]
        return several(tags, "\n", demand.parallel)

    def call(self, s: Scanner, opener: str) -> Step[None]:
        yield from s.space()
        if not (yield from call_object(s)) or s.untold:
            return
        yield from s.run(_CLOSING)  # a brace too many or too few is the commonest of errors
        if (yield from s.accept("</tool_call>")):
            s.drop()
