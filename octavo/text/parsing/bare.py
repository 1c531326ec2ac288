"""Arguments as text between tags, one parameter after the other, for formats that write them so.

The schema of a tool says which values are strings. These are told as they come, with JSON's escapes; any other is held
until it is complete: it is JSON if it is valid, and a string if not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from octavo.text.parsing.forms import (
    Demand,
    Form,
    Tool,
    either,
    free,
    optional,
    regex,
    schema,
    sequence,
    several,
    tag,
    text,
)
from octavo.text.parsing.scanner import Scanner, Step
from octavo.text.parsing.values import dumps

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


def parameters_form(tool: Tool, demand: Demand, begin: str, end: str) -> Form:
    """The grammar of parameters in the order of a tool's schema, or, without one, such as the model makes up.
    `begin` has KEY for a name."""
    found, param = demand.schema(tool), demand.params.get(tool["name"])
    properties, required = found.get("properties"), found.get("required")
    before, _, after = begin.partition("KEY")
    if not isinstance(properties, Mapping):
        made_up = tag(before, sequence(regex(r"\w+"), free(after, end)), "")
        return optional(several([made_up], "", parallel=True))
    parts = [text("")]
    for key, value in properties.items():
        kind = value.get("type", "string") if isinstance(value, Mapping) else "string"
        if kind == "string" and "enum" in value:
            part = tag(before + key + after, either(*(text(str(each)) for each in value["enum"])), end)
        elif kind == "string":
            part = free(before + key + after, end)
        else:
            part = tag(before + key + after, schema(value, f"{param}.properties.{key}" if param else ""), end)
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
