"""Qwen3-Coder: <tool_call><function=name><parameter=key>value</parameter>…</function></tool_call>.

Values are bare text. The tool's schema says which of them are strings; others are JSON if they are valid, else strings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from octavo.text.parsing.base import OutputParser
from octavo.text.parsing.forms import Demand, Form, either, free, optional, regex, schema, sequence, several, tag, text
from octavo.text.parsing.scanner import Scanner, Step
from octavo.text.parsing.values import dumps

_PYTHON = {"True": "true", "False": "false", "None": "null"}


class QwenXml(OutputParser):
    openers = ("<tool_call>", "<function=")
    markers = ("<tool_call>", "</tool_call>")

    def calls_form(self, demand: Demand) -> Form:
        tags = [
            tag(f"<tool_call>\n<function={name}>\n", _parameters(demand.arguments(tool)), "</function>\n</tool_call>")
            for name, tool in self.tools.items()
        ]
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
        types = _types(self.tools.get(name))
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
            if not (yield from _value(s, types.get(key, "string"))):
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


def _parameters(found: Mapping[str, Any]) -> Form:
    """The parameters of a tool in its schema's order; of a tool without any, such as the model makes up."""
    properties, required = found.get("properties"), found.get("required")
    if not isinstance(properties, Mapping):
        made_up = tag("<parameter=", sequence(regex(r"\w+"), free(">\n", "\n</parameter>\n")), "")
        return optional(several([made_up], "", parallel=True))
    parts = [text("")]
    for key, value in properties.items():
        kind = value.get("type", "string") if isinstance(value, Mapping) else "string"
        begin, end = f"<parameter={key}>\n", "\n</parameter>\n"
        if kind == "string" and "enum" in value:
            part = tag(begin, either(*(text(str(each)) for each in value["enum"])), end)
        else:
            part = free(begin, end) if kind == "string" else tag(begin, schema(value), end)
        parts.append(part if key in (required or ()) else optional(part))
    return sequence(*parts)


def _value(s: Scanner, kind: Any) -> Step[bool]:
    """One value up to its closing tag; one line break at each end belongs to the tags."""
    end = "</parameter>"
    yield from s.accept("\n")
    s.drop()
    if kind != "string":
        if not (yield from s.until((end,))):
            return False
        s.argue(_json(s.untold.removesuffix(end).removesuffix("\n")))
        return True
    s.argue('"')
    found = yield from s.until((end,), lambda text: s.argue(dumps(text)[1:-1]))
    s.argue(dumps(s.untold.removesuffix(end).removesuffix("\n"))[1:-1] + '"' * bool(found))
    return bool(found)


def _json(text: str) -> str:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return _PYTHON.get(text.strip(), dumps(text))
    return text.strip()


def _types(tool: Mapping[str, Any] | None) -> dict[str, Any]:
    """The type that the schema of each parameter names, if it names one."""
    schema = tool.get("parameters") if tool else None
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        return {}
    return {key: found.get("type", "any") for key, found in properties.items() if isinstance(found, Mapping)}
