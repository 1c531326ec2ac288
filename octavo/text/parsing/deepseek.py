"""DeepSeek: between <｜tool▁calls▁begin｜> and <｜tool▁calls▁end｜>, a call is

R1, V3:  <｜tool▁call▁begin｜>function<｜tool▁sep｜>name⏎```json⏎{…}⏎```<｜tool▁call▁end｜>
V3.1:    <｜tool▁call▁begin｜>name<｜tool▁sep｜>{…}<｜tool▁call▁end｜>
"""

from __future__ import annotations

import re

from octavo.text.parsing.base import OutputParser
from octavo.text.parsing.forms import Demand, Form, several, tag
from octavo.text.parsing.scanner import Scanner, Step
from octavo.text.parsing.values import value

CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
_NAME = re.compile(r"[\w.-]*")


class DeepSeek(OutputParser):
    openers = (CALLS, CALL)
    markers = (CALLS, CALLS_END, CALL, CALL_END, SEPARATOR)

    def calls_form(self, demand: Demand) -> Form:
        before, after = (
            (f"function{SEPARATOR}NAME\n```json\n", "\n```")
            if "```json" in demand.template
            else (f"NAME{SEPARATOR}", "")
        )
        tags = [
            tag(CALL + before.replace("NAME", name), demand.arguments(tool), after + CALL_END)
            for name, tool in self.tools.items()
        ]
        return tag(CALLS, several(tags, "\n" if after else "", demand.parallel), CALLS_END)

    def call(self, s: Scanner, opener: str) -> Step[None]:
        if opener == CALLS:
            yield from s.space()
            if not (yield from s.accept(CALL)):
                return
        while (yield from self._one(s)):
            yield from s.space()
            if not (yield from s.accept(CALL)):
                if (yield from s.accept(CALLS_END)):
                    s.drop()
                return

    def _one(self, s: Scanner) -> Step[bool]:
        name = yield from s.run(_NAME)
        if not (yield from s.accept(SEPARATOR)):
            return False
        if name == "function" and (yield from s.peek()) != "{":
            name = yield from s.run(_NAME)
            yield from s.space()
            yield from s.accept("```json")
            yield from s.space()
        if not name or (yield from s.peek()) != "{":
            return False
        s.begin_call(name)
        if not (yield from value(s, s.argue)):
            return False
        yield from s.space()
        if (yield from s.accept("```")):
            yield from s.space()
        if not (yield from s.accept(CALL_END)):
            return False
        s.drop()
        return True
