"""Kimi K2: between <|tool_calls_section_begin|> and <|tool_calls_section_end|>, a call is

<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{…}<|tool_call_end|>
"""

from __future__ import annotations

import re

from octavo.text.parsing.base import OutputParser
from octavo.text.parsing.forms import Demand, Form, regex, sequence, several, tag, text
from octavo.text.parsing.scanner import Scanner, Step
from octavo.text.parsing.values import value

SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
_NAME = re.compile(r"[\w.:-]*")
_NUMBER = re.compile(r":\d+\Z")


class Kimi(OutputParser):
    openers = (SECTION, CALL)
    markers = (SECTION, SECTION_END, CALL, ARGUMENTS, CALL_END)

    def calls_form(self, demand: Demand) -> Form:
        number = regex("[0-9]{1,3}")
        tags = [
            tag(f"{CALL}functions.{name}:", sequence(number, text(ARGUMENTS), demand.arguments(tool)), CALL_END)
            for name, tool in self.tools.items()
        ]
        return tag(SECTION, several(tags, "", demand.parallel), SECTION_END)

    def call(self, s: Scanner, opener: str) -> Step[None]:
        if opener == SECTION:
            yield from s.space()
            if not (yield from s.accept(CALL)):
                return
        while (yield from self._one(s)):
            yield from s.space()
            if not (yield from s.accept(CALL)):
                if (yield from s.accept(SECTION_END)):
                    s.drop()
                return

    def _one(self, s: Scanner) -> Step[bool]:
        yield from s.space()
        name = yield from s.run(_NAME)
        name = _NUMBER.sub("", name).removeprefix("functions.")
        yield from s.space()
        if not name or not (yield from s.accept(ARGUMENTS)):
            return False
        yield from s.space()
        if (yield from s.peek()) != "{":
            return False
        s.begin_call(name)
        if not (yield from value(s, s.argue)):
            return False
        yield from s.space()
        if not (yield from s.accept(CALL_END)):
            return False
        s.drop()
        return True
