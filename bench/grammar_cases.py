"""JSON schemas with values that they accept and values that they refuse: what a grammar library is tried with.

(name, schema, accepted, refused). Values are written compactly, with the keys of objects in the schema's order.
"""

from __future__ import annotations

from typing import Any


def _obj(properties: dict[str, Any], required: bool = True, **more: Any) -> dict[str, Any]:
    found = {"type": "object", "properties": properties, "additionalProperties": False, **more}
    return {**found, "required": list(properties)} if required else found


_NODE = {
    "$defs": {
        "node": _obj({"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}})
    },
    "$ref": "#/$defs/node",
}
CASES: list[tuple[str, Any, list[Any], list[Any]]] = [
    ("boolean", {"type": "boolean"}, [True, False], ["true", 0, None]),
    ("null", {"type": "null"}, [None], [0, ""]),
    ("integer", {"type": "integer"}, [0, -7, 12345], [1.5, "1", True]),
    ("number", {"type": "number"}, [0, -1.5, 2.5e10], ["1", None]),
    ("any", {}, [1, "a", [1, {"b": None}], {"a": {}}], []),
    ("true schema", True, [1, {"a": 1}], []),
    ("several types", {"type": ["string", "null"]}, ["a", None], [1, []]),
    ("string length", {"type": "string", "minLength": 2, "maxLength": 4}, ["ab", "abcd", "äöü"], ["a", "abcde"]),
    ("string pattern", {"type": "string", "pattern": "^[a-z]{2}-[0-9]+$"}, ["ab-1", "zz-99"], ["a-1", "ab-"]),
    ("pattern not anchored", {"type": "string", "pattern": "b+"}, ["b", "abbc"], ["ac", ""]),
    ("pattern and length", {"type": "string", "pattern": "^a+$", "maxLength": 3}, ["a", "aaa"], ["aaaa", "b"]),
    ("escapes in const", {"const": 'a"b\\c\nd'}, ['a"b\\c\nd'], ["ab"]),
    ("unicode enum", {"enum": ["Grüße", "日本", "🙂"]}, ["Grüße", "日本", "🙂"], ["Gruss"]),
    ("enum of all kinds", {"enum": [1, "a", None, True, [1, 2], {"k": 1}]}, [1, "a", None, [1, 2], {"k": 1}], [2, [1]]),
    ("const object", {"const": {"a": [1, {"b": 2}]}}, [{"a": [1, {"b": 2}]}], [{"a": []}]),
    ("minimum maximum", {"type": "integer", "minimum": -3, "maximum": 120}, [-3, 0, 99, 120], [-4, 121, 1000]),
    ("exclusive bounds", {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10}, [1, 9], [0, 10]),
    ("number bounds", {"type": "number", "minimum": 0, "maximum": 1}, [0, 0.5, 1], [-0.1, 1.01, 2]),
    ("multipleOf", {"type": "integer", "multipleOf": 5}, [0, 5, 25, 100], [1, 12]),
    ("object", _obj({"a": {"type": "integer"}, "b": {"type": "string"}}), [{"a": 1, "b": "x"}], [{"a": 1}, {}]),
    (
        "optional",
        _obj({"a": {"type": "integer"}, "b": {}}, False),
        [{}, {"a": 1}, {"b": 1}, {"a": 1, "b": 2}],
        [{"c": 1}],
    ),
    ("some required", {**_obj({"a": {}, "b": {}}), "required": ["b"]}, [{"b": 1}, {"a": 1, "b": 2}], [{}, {"a": 1}]),
    (
        "additional of a type",
        {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "boolean"}},
        [{}, {"a": 1}, {"a": 1, "z": True}, {"z": False}],
        [{"z": 1}, {"a": True}],
    ),
    (
        "additional at will",
        {"type": "object", "properties": {"a": {"type": "integer"}}},
        [{"a": 1, "z": [1]}],
        [{"a": "x"}],
    ),
    (
        "patternProperties",
        {"type": "object", "patternProperties": {"^n_": {"type": "integer"}}, "additionalProperties": False},
        [{}, {"n_a": 1}, {"n_a": 1, "n_b": 2}],
        [{"n_a": "x"}, {"m": 1}],
    ),
    ("required not in properties", {"type": "object", "required": ["q"]}, [{"q": 1}], [{}]),
    ("minProperties", {"type": "object", "minProperties": 1, "maxProperties": 2}, [{"a": 1}, {"a": 1, "b": 1}], [{}]),
    ("array", {"type": "array", "items": {"type": "integer"}}, [[], [1], [1, 2, 3]], [["a"], 1]),
    ("array bounds", {"type": "array", "items": {}, "minItems": 1, "maxItems": 2}, [[1], [1, "a"]], [[], [1, 2, 3]]),
    (
        "tuple",
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False, "minItems": 2},
        [[1, "a"]],
        [["a", 1], [1, "a", 2], [1]],
    ),
    (
        "tuple of old",
        {"type": "array", "items": [{"type": "integer"}], "additionalItems": False, "minItems": 1},
        [[1]],
        [["a"], [1, 2]],
    ),
    ("matrix", {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}, [[], [[1, 2.5], []]], [[1]]),
    ("anyOf", {"anyOf": [{"type": "integer"}, _obj({"a": {}})]}, [1, {"a": 1}], ["x", {}]),
    ("oneOf apart", {"oneOf": [{"type": "integer"}, {"type": "string"}]}, [1, "a"], [None]),
    (
        "oneOf overlapping",
        {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 5}]},
        [-1, 9],
        [3],
    ),
    (
        "allOf",
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"properties": {"b": {"type": "string"}}, "required": ["b"]},
            ]
        },
        [{"a": 1, "b": "x"}],
        [{"a": 1}, {"b": "x"}, {"a": "x", "b": "x"}],
    ),
    ("allOf of bounds", {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}, [3, 5], [2, 6]),
    (
        "ref recursive",
        _NODE,
        [{"value": 1, "next": None}, {"value": 1, "next": {"value": 2, "next": None}}],
        [{"value": 1}],
    ),
    ("ref with a slash", {"definitions": {"a/b": {"type": "integer"}}, "$ref": "#/definitions/a~1b"}, [1], ["x"]),
    ("ref beside keywords", {"$defs": {"p": {"type": "integer"}}, "$ref": "#/$defs/p", "minimum": 3}, [3, 10], [1]),
    ("date-time", {"type": "string", "format": "date-time"}, ["2026-11-23T04:00:00Z"], ["yesterday"]),
    ("uuid", {"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123"]),
    ("email", {"type": "string", "format": "email"}, ["a@example.com"], ["a"]),
    ("ipv4", {"type": "string", "format": "ipv4"}, ["192.168.0.1"], ["1.2.3", "999.1.1.1"]),
    ("format of OpenAPI", {"type": "integer", "format": "int32"}, [1], ["x"]),
    ("key to escape", _obj({'a"b\\': {"type": "integer"}, "ü\n": {}}), [{'a"b\\': 1, "ü\n": 2}], [{"a": 1}]),
    ("minLength alone", {"minLength": 2}, ["ab", 1, None], ["a"]),
    (
        "unevaluatedProperties",
        {"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False},
        [{"a": 1}],
        [{"z": 1}],
    ),
    ("not", {"not": {"type": "integer"}}, ["a"], [1]),
    ("if", {"type": "integer", "if": {"minimum": 5}, "then": {"multipleOf": 2}}, [1, 6], [7]),
    ("uniqueItems", {"type": "array", "uniqueItems": True}, [[1, 2]], [[1, 1]]),
    ("contains", {"type": "array", "contains": {"const": 1}}, [[1], [2, 1]], [[], [2]]),
    ("dependentRequired", {"type": "object", "dependentRequired": {"a": ["b"]}}, [{"a": 1, "b": 2}, {}], [{"a": 1}]),
    ("propertyNames", {"type": "object", "propertyNames": {"pattern": "^a"}}, [{"a": 1}], [{"b": 1}]),
    ("cannot be", {"type": "integer", "minimum": 3, "maximum": 2}, [], [2, 3]),
    ("false schema", False, [], [1]),
]
