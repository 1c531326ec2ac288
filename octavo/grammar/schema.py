"""JSON schemas, looked over before they are compiled: what cannot be enforced is refused, with its path.

A keyword that the grammar library does not know must not be dropped: the answer would not be what the schema says. A
keyword that JSON Schema itself does not know is an annotation, and a `format` that it does not define is one too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

MAX_DEPTH = 64
MAX_EXACT = 2**53  # the library's numbers are doubles: what is larger would become another number
UNSUPPORTED = frozenset(
    ("unevaluatedProperties", "unevaluatedItems", "contains", "minContains", "maxContains", "uniqueItems")
    + ("propertyNames", "dependentRequired", "dependentSchemas", "dependencies", "if", "then", "else", "not")
    + ("$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor")
)
# Formats that JSON Schema defines and the library cannot enforce.
UNSUPPORTED_FORMATS = frozenset(
    ("idn-email", "idn-hostname", "uri-reference", "iri", "iri-reference", "uri-template", "json-pointer")
    + ("relative-json-pointer", "regex")
)
FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")  # enforced
)
_OPTIONS = "x-guidance"  # the library's own options, which are ours to set
_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions")
_OF_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_OF_VALUES = ("const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_ONE = ("items", "additionalProperties", "additionalItems")
# Their values say that nothing is asked.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "unevaluatedProperties": (True,),
    "unevaluatedItems": (True,),
    "not": (False,),
    "contains": (),
}


class GrammarError(Exception):
    """What a user asked for cannot be enforced. `path` leads to it, below the field that it came in."""

    def __init__(self, message: str, path: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.path, self.code = message, path, code


def step(path: str, name: str | int) -> str:
    if isinstance(name, int):
        return f"{path}[{name}]"
    name = name if len(name) <= 64 else name[:61] + "..."
    return f"{path}.{name}" if path else name


def prepare(schema: Any, *, close_objects: bool = False) -> Any:
    """A copy of the schema as the library takes it. `close_objects`: no properties but those that are named."""
    return _prepare(schema, "", 0, close_objects)


def _prepare(schema: Any, path: str, depth: int, close: bool) -> Any:
    if depth > MAX_DEPTH:
        raise GrammarError(f"the schema is more than {MAX_DEPTH} levels deep", path, "grammar_too_complex")
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise GrammarError("a schema must be an object or a boolean", path)
    found: dict[str, Any] = {}
    for key, value in schema.items():
        here = step(path, key)
        if key in UNSUPPORTED:
            if any(value is neutral for neutral in _NEUTRAL.get(key, ())):
                continue
            raise GrammarError(f"the keyword {key} is not supported", here)
        if key == "format" and _leaves_open(value, here):
            continue
        if key in _OF_VALUES:
            _check_exact(value, here)
        if key in _COUNTS and isinstance(value, float) and value.is_integer():
            value = int(value)
        if key in _OF_NAMES:
            if not isinstance(value, dict):
                raise GrammarError(f"{key} must be an object of schemas", here)
            value = {name: _prepare(sub, step(here, name), depth + 1, close) for name, sub in value.items()}
        elif key in _OF_LISTS or (key == "items" and isinstance(value, list)):
            if not isinstance(value, list):
                raise GrammarError(f"{key} must be a list of schemas", here)
            value = [_prepare(sub, step(here, i), depth + 1, close) for i, sub in enumerate(value)]
        elif key in _ONE:
            value = _prepare(value, here, depth + 1, close)
        if key != _OPTIONS:
            found[key] = value
    if isinstance(found.get("items"), list):  # as drafts before 2020-12 wrote it
        found["prefixItems"], rest = found["items"], found.pop("additionalItems", True)
        found["items"] = rest
    if close and ("properties" in found or found.get("type") == "object"):
        found.setdefault("additionalProperties", False)
    _check_count(found, path)
    return found


def _check_exact(value: Any, path: str) -> None:
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, (int, float)) and not -MAX_EXACT <= part <= MAX_EXACT and not _is_double(part):
            raise GrammarError("numbers that a double cannot hold are not supported", path)
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()


def _is_double(value: int | float) -> bool:
    try:
        return math.isfinite(value) and int(float(value)) == value
    except OverflowError:
        return False


def _check_count(schema: dict[str, Any], path: str) -> None:
    """A grammar does not know which keys it has seen, so it could write a free key twice where two are asked for."""
    free = schema.get("additionalProperties", True) is not False or "patternProperties" in schema
    least, required = schema.get("minProperties", 0), schema.get("required", ())
    known = len(set(map(str, required))) if isinstance(required, list) else 0
    if free and isinstance(least, int) and least > known + 1:
        raise GrammarError(
            "minProperties is supported up to one more than there are required properties, "
            "or without additional properties",
            step(path, "minProperties"),
        )


def _leaves_open(name: Any, path: str) -> bool:
    """True for a format that constrains nothing, as those that OpenAPI and pydantic add."""
    if not isinstance(name, str):
        raise GrammarError("format must be a text", path)
    if name in UNSUPPORTED_FORMATS:
        raise GrammarError(f"the format {name} is not supported", path)
    return name not in FORMATS


def subschemas(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of a prepared schema that is a schema, with its path; the outer before the inner."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for key, value in schema.items():
        if key in _OF_NAMES:
            for name, sub in value.items():
                yield from subschemas(sub, step(step(path, key), name))
        elif key in _OF_LISTS:
            for i, sub in enumerate(value):
                yield from subschemas(sub, step(step(path, key), i))
        elif key in _ONE:
            yield from subschemas(value, step(path, key))


def blame(message: str) -> str:
    """The keyword that a message of the library is about; "" if it does not say."""
    for start, keyword in (
        ("regex parse error", "pattern"),
        ("lookarounds not supported", "pattern"),
        ("Invalid type", "type"),
        ("Unknown format", "format"),
        ("oneOf", "oneOf"),
        ("min/maxProperties", "minProperties"),
        ("Pointer", "$ref"),
        ("Resource", "$ref"),
    ):
        if message.startswith(start):
            return keyword
    return ""
