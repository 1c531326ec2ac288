"""GLM 4.5: <tool_call>name, then <arg_key>key</arg_key><arg_value>value</arg_value> for each argument, </tool_call>."""

from __future__ import annotations

import re

from octavo.text.parsing.bare import bare_value, declared_types, parameters_form
from octavo.text.parsing.base import OutputParser
from octavo.text.parsing.forms import Demand, Form, several, tag
from octavo.text.parsing.scanner import Scanner, Step
from octavo.text.parsing.values import dumps

_NAME = re.compile(r"[\w.-]*")
_KEY, _VALUE = "<arg_key>KEY</arg_key>\n<arg_value>", "</arg_value>\n"


class Glm(OutputParser):
    openers = ("<tool_call>",)
    markers = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")

    def calls_form(self, demand: Demand) -> Form:
        tags = [
            tag(f"<tool_call>{name}\n", parameters_form(tool, demand, _KEY, _VALUE), "</tool_call>")
            for name, tool in self.tools.items()
        ]
        return several(tags, "\n", demand.parallel)

    def call(self, s: Scanner, opener: str) -> Step[None]:
        yield from s.space()
        name = yield from s.run(_NAME)
        yield from s.space()
        found = yield from s.accept("<arg_key>", "</tool_call>")
        if not name or not found:
            return
        s.begin_call(name)
        s.argue("{")
        types, comma = declared_types(self.tools.get(name)), ""
        while found == "<arg_key>":
            if not (yield from s.until(("</arg_key>",))):
                return
            key = s.untold.removesuffix("</arg_key>").strip()
            yield from s.space()
            if not (yield from s.accept("<arg_value>")):
                return
            s.argue(f"{comma}{dumps(key)}: ")
            comma = ", "
            if not (yield from bare_value(s, types.get(key, "string"), "</arg_value>")):
                return
            yield from s.space()
            found = yield from s.accept("<arg_key>", "</tool_call>")
            s.drop()
        if found:
            s.argue("}")
