"""Qwen3-Coder: <tool_call><function=name><parameter=key>value</parameter>…</function></tool_call>."""

from __future__ import annotations

from octavo.text.parsing.bare import bare_value, declared_types, parameters_form
from octavo.text.parsing.base import OutputParser
from octavo.text.parsing.forms import Demand, Form, several, tag
from octavo.text.parsing.scanner import Scanner, Step
from octavo.text.parsing.values import dumps


class QwenXml(OutputParser):
    openers = ("<tool_call>", "<function=")
    markers = ("<tool_call>", "</tool_call>")

    def calls_form(self, demand: Demand) -> Form:
        tags = []
        for name, tool in self.tools.items():
            parameters = parameters_form(tool, demand, "<parameter=KEY>\n", "\n</parameter>\n")
            tags.append(tag(f"<tool_call>\n<function={name}>\n", parameters, "</function>\n</tool_call>"))
        return several(tags, "\n", demand.parallel)

    def call(self, s: Scanner, opener: str) -> Step[None]:
        yield from s.space()
        if opener == "<tool_call>" and not (yield from s.accept("<function=")):
            return
        name = yield from self._name(s)
        if not name:
            return
        s.begin_call(name)
        s.argue("{")
        types = declared_types(self.tools.get(name))
        comma = ""
        while True:
            yield from s.space()
            found = yield from s.accept("<parameter=", "</function>", "</tool_call>")
            if found != "<parameter=":
                break
            key = yield from self._name(s)
            if not key:
                return
            s.argue(f"{comma}{dumps(key)}: ")
            comma = ", "
            if not (yield from bare_value(s, types.get(key, "string"), "</parameter>")):
                return
        if not found:
            return
        s.argue("}")
        yield from s.space()
        if found == "</function>" and (yield from s.accept("</tool_call>")):
            s.drop()

    def _name(self, s: Scanner) -> Step[str]:
        """The rest of a tag."""
        before = s.num_untold
        found = yield from s.until((">", "<", "\n"))
        return s.untold[before:-1].strip() if found == ">" else ""
