"""MiniMax M2 and DeepSeek V3.2: calls as XML, with a tag for each parameter.

MiniMax:   <minimax:tool_call><invoke name="f"><parameter name="key">value</parameter></invoke></minimax:tool_call>
DeepSeek:  the same with <｜DSML｜function_calls>, <｜DSML｜invoke …> and <｜DSML｜parameter name="key" string="true">,
           where string says whether the value is text or JSON.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from octavo.text.parsing.bare import bare_value, declared_types, parameters_form
from octavo.text.parsing.base import OutputParser
from octavo.text.parsing.forms import Demand, Form, several, tag
from octavo.text.parsing.scanner import Scanner, Step
from octavo.text.parsing.values import dumps

DSML = "｜DSML｜"
_KINDS = (' string="true"', ' string="false"')
_QUOTED = re.compile(r'[^"<>\n]*')


class Invoke(OutputParser):
    prefix: ClassVar[str] = ""
    kinds: ClassVar[tuple[str, str]] = ("", "")  # how a tag says that its value is text, or JSON
    outer: ClassVar[str] = "minimax:tool_call"
    openers: ClassVar[tuple[str, ...]] = ("<minimax:tool_call>",)
    markers: ClassVar[tuple[str, ...]] = ("<minimax:tool_call>", "</minimax:tool_call>")

    def calls_form(self, demand: Demand) -> Form:
        p = self.prefix
        tags = []
        for name, tool in self.tools.items():
            begin, end = f'<{p}parameter name="KEY"KIND>', f"</{p}parameter>\n"
            parameters = parameters_form(tool, demand, begin, end, self.kinds)
            tags.append(tag(f'<{p}invoke name="{name}">\n', parameters, f"</{p}invoke>\n"))
        return tag(f"<{self.outer}>\n", several(tags, "", demand.parallel), f"</{self.outer}>")

    def call(self, s: Scanner, opener: str) -> Step[None]:
        invoke, close = f'<{self.prefix}invoke name="', f"</{self.outer}>"
        yield from s.space()
        found = yield from s.accept(invoke)
        while found == invoke:
            if not (yield from self._one(s)):
                return
            yield from s.space()
            found = yield from s.accept(invoke, close)
        if found:
            s.drop()

    def _one(self, s: Scanner) -> Step[bool]:
        parameter, end = f'<{self.prefix}parameter name="', f"</{self.prefix}invoke>"
        name = yield from s.run(_QUOTED)
        if not name or not (yield from s.accept('">')):
            return False
        s.begin_call(name)
        s.argue("{")
        types, comma = declared_types(self.tools.get(name)), ""
        while True:
            yield from s.space()
            found = yield from s.accept(parameter, end)
            if found != parameter:
                break
            key = yield from s.run(_QUOTED)
            if not (yield from s.accept('"')):
                return False
            kind: Any = yield from self._kind(s, types.get(key, "string"))
            if not (yield from s.accept(">")):
                return False
            s.argue(f"{comma}{dumps(key)}: ")
            comma = ", "
            if not (yield from bare_value(s, kind, f"</{self.prefix}parameter>")):
                return False
        if not found:
            return False
        s.argue("}")
        return True

    def _kind(self, s: Scanner, declared: Any) -> Step[Any]:
        """The type of the value that follows: what the tag says, or else what the tool's schema does."""
        found = yield from s.accept(*_KINDS)
        if not found:
            return declared
        return "string" if found == _KINDS[0] else "any"


class Dsml(Invoke):
    prefix = DSML
    kinds = _KINDS
    outer = f"{DSML}function_calls"
    openers = (f"<{DSML}function_calls>",)
    markers = (DSML,)
