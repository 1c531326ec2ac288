"""Schemas that no value matches, or only one without end: an object that must hold itself, an enum of nothing that its
type allows.

`prune` finds out which of a schema's parts some finite value may match. It errs on the side of the schema: what it does
not look at counts as possible. Parts that are not possible are left out where the rest can do without them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from octavo.grammar.schema import GrammarError, step, subschemas

_TYPES: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int, float),
    "number": (int, float),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}
_BOUNDS = {
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems"),
    "object": ("minProperties", "maxProperties"),
    "number": ("minimum", "maximum"),
    "integer": ("minimum", "maximum"),
}


def prune(schema: Any) -> Any:
    """The prepared schema without parts that nothing finite can match; GrammarError, with the path, if that is all."""
    if not isinstance(schema, dict):
        return schema
    found = _Pruning(schema)
    if not found.allows(schema):
        raise GrammarError("no value that ends can match it", found.reason(schema, "", set()))
    return found.rest(schema)


class _Pruning:
    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root
        self.nodes = {id(node): (path, node) for path, node in subschemas(root)}
        self.possible: set[int] = set()
        size = -1
        while size != len(self.possible):
            size = len(self.possible)
            for key, (_, node) in reversed(self.nodes.items()):  # the inner ones first
                if key not in self.possible and not any(True for _ in self.faults(node)):
                    self.possible.add(key)

    def allows(self, schema: Any) -> bool:
        if isinstance(schema, dict):
            return id(schema) in self.possible or id(schema) not in self.nodes
        return schema is not False

    def target(self, ref: Any) -> Any:
        """What a reference leads to; True if that is not within the schema."""
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            return True
        node: Any = self.root
        for name in ref[2:].split("/") if ref != "#" else ():
            name = unquote(name).replace("~1", "/").replace("~0", "~")
            try:
                node = node[int(name)] if isinstance(node, list) else node[name]
            except (KeyError, IndexError, ValueError, TypeError):
                return True
        return node

    def faults(self, node: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Why nothing matches, as far as is known now: a keyword, and the schema that nothing matches, if it is one."""
        if "$ref" in node and not self.allows(target := self.target(node["$ref"])):
            yield "$ref", target
        yield from (("allOf", each) for each in _list(node, "allOf") if not self.allows(each))
        for key in ("anyOf", "oneOf"):
            if _list(node, key) and not any(map(self.allows, _list(node, key))):
                yield key, None
        if "enum" in node and isinstance(node["enum"], list) and not any(_fits(value, node) for value in node["enum"]):
            yield "enum", None
        if "const" in node and not _fits(node["const"], node):
            yield "const", None
        kinds = node.get("type")
        kinds = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
        faults = [next(iter(self.faults_of(kind, node)), None) for kind in kinds if isinstance(kind, str)]
        if faults and all(faults):
            assert faults[0] is not None
            yield faults[0] if len(faults) == 1 else ("type", None)

    def faults_of(self, kind: str, node: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """The same of values of one type."""
        low, high = (_number(node.get(key)) for key in _BOUNDS.get(kind, ("", "")))
        if low is not None and high is not None and low > high:
            yield _BOUNDS[kind][0], None
        if kind == "object":
            properties = node.get("properties")
            for name in _list(node, "required"):
                if not isinstance(name, str):
                    continue
                if isinstance(properties, dict) and name in properties:
                    if not self.allows(properties[name]):
                        yield f"properties.{name}", properties[name]
                elif "patternProperties" not in node and not self.allows(node.get("additionalProperties", True)):
                    yield "required", None
        if kind == "array" and (least := _number(node.get("minItems"))):
            first = _list(node, "prefixItems")
            for i, item in enumerate(first[: max(0, int(min(least, len(first))))]):
                if not self.allows(item):
                    yield f"prefixItems[{i}]", item
            if least > len(first) and not self.allows(node.get("items", True)):
                yield "items", node["items"]

    def reason(self, node: dict[str, Any], path: str, seen: set[int]) -> str:
        """The path of what is at fault: down to where it leads back to itself."""
        seen.add(id(node))
        key, inner = next(iter(self.faults(node)))
        if not isinstance(inner, dict) or id(inner) in seen or id(inner) not in self.nodes:
            return step(path, key)
        return self.reason(inner, self.nodes[id(inner)][0], seen)

    def rest(self, schema: Any) -> Any:
        """The schema without what is not possible."""
        if not isinstance(schema, dict):
            return schema
        if not self.allows(schema):
            return False
        found = dict(schema)
        for key, value in schema.items():
            if key in ("properties", "patternProperties") and isinstance(value, dict):
                found[key] = {name: self.rest(each) for name, each in value.items()}
            elif key in ("$defs", "definitions") and isinstance(value, dict):
                found[key] = {name: self.rest(each) or each for name, each in value.items()}
            elif key in ("anyOf", "oneOf") and isinstance(value, list):
                found[key] = [self.rest(each) for each in value if self.allows(each)]
            elif key in ("allOf", "prefixItems") and isinstance(value, list):
                found[key] = [self.rest(each) for each in value]
            elif key in ("items", "additionalProperties"):
                found[key] = self.rest(value)
        return found


def _list(node: dict[str, Any], key: str) -> list[Any]:
    found = node.get(key)
    return found if isinstance(found, list) else []


def _number(value: Any) -> float | None:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _fits(value: Any, node: dict[str, Any]) -> bool:
    """Whether a value of an enum or a const may match what stands beside it; only what is plain is looked at."""
    kinds = node.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else list(_TYPES)
    if not any(_is(value, kind) for kind in kinds if isinstance(kind, str)):
        return False
    if "const" in node and _text(value) != _text(node["const"]):
        return False
    if "enum" in node and _text(value) not in map(_text, _list(node, "enum")):
        return False
    size = len(value) if isinstance(value, (str, list, dict)) else value
    for kind in ("string", "array", "object", "number"):
        if _is(value, kind):
            low, high = (_number(node.get(key)) for key in _BOUNDS[kind])
            return not (low is not None and size < low) and not (high is not None and size > high)
    return True


def _is(value: Any, kind: str) -> bool:
    if kind == "integer" and isinstance(value, float) and not value.is_integer():
        return False
    return isinstance(value, _TYPES.get(kind, (object,))) and (kind == "boolean" or not isinstance(value, bool))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
