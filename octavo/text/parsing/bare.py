"""Arguments as text between tags, one parameter after the other, for formats that write them so.

The schema of a tool says which values are strings. These are told as they come, with JSON's escapes; any other is held
until it is complete: it is JSON if it is valid, and a string if not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from octavo.text.parsing.custom import INPUT
from octavo.text.parsing.forms import (
    Demand,
    Form,
    Tool,
    either,
    free,
    optional,
    property_form,
    regex,
    schema,
    sequence,
    several,
    tag,
    text,
)
from octavo.text.parsing.scanner import Scanner, Step
from octavo.text.parsing.values import dumps

Kinds = tuple[str, str]
_PYTHON = {"True": "true", "False": "false", "None": "null"}


def declared_types(tool: Tool | None) -> dict[str, Any]:
    """The type that the schema of each parameter names, if it names one."""
    found = tool.get("parameters") if tool else None
    properties = found.get("properties") if isinstance(found, Mapping) else None
    if not isinstance(properties, Mapping):
        return {}
    return {key: value.get("type", "any") for key, value in properties.items() if isinstance(value, Mapping)}


def bare_value(s: Scanner, kind: Any, end: str) -> Step[bool]:
    """Takes a value and the tag `end` after it, and tells it; one line break at each end belongs to the tags."""
    yield from s.accept("\n")
    s.drop()
    if kind != "string":
        if not (yield from s.until((end,))):
            return False
        s.argue(_json(s.untold.removesuffix(end).removesuffix("\n")))
        return True
    s.argue('"')
    found = yield from s.until((end,), lambda value: s.argue(dumps(value)[1:-1]))
    s.argue(dumps(s.untold.removesuffix(end).removesuffix("\n"))[1:-1] + '"' * bool(found))
    return bool(found)


def parameters_form(tool: Tool, demand: Demand, begin: str, end: str, kinds: Kinds = ("", "")) -> Form:
    """The grammar of parameters in the order of a tool's schema, or, without one, such as the model makes up.
    `begin` has KEY for a name, and KIND for what `kinds` says of text and of JSON."""
    found, param = demand.schema(tool), demand.params.get(tool["name"], "")
    properties, required = found.get("properties"), found.get("required")
    before, _, after = begin.partition("KEY")
    json_after = after.replace("KIND", kinds[1])
    after = after.replace("KIND", kinds[0])
    if not isinstance(properties, Mapping):
        values = [free(after, end)] + ([tag(json_after, schema(True), end)] if json_after != after else [])
        made_up = tag(before, sequence(regex(r"\w+"), either(*values)), "")
        return optional(several([made_up], "", parallel=True))
    if "grammar" in tool:
        return tag(before + INPUT + after, demand.bare_input(tool), end)
    parts = [text("")]
    for key, value in properties.items():
        kind = value.get("type") if isinstance(value, Mapping) else None
        if kind == "string" and "enum" in value:
            part = tag(before + key + after, either(*(text(str(each)) for each in value["enum"])), end)
        elif kind == "string":
            part = free(before + key + after, end)
        else:
            part = tag(before + key + json_after, property_form(found, key, param), end)
        parts.append(part if key in (required or ()) else optional(part))
    return sequence(*parts)


def _json(value: str) -> str:
    try:
        json.loads(value, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _PYTHON.get(value.strip(), dumps(value))
    return value.strip()


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
