"""Several hundred JSON schemas, by the keyword that they are about, and values to try them with.

A schema is in `REFUSED` with the path to what cannot be enforced, or it is followed exactly.
"""

from __future__ import annotations

import itertools
from typing import Any

KINDS = ("null", "boolean", "integer", "number", "string", "array", "object")
INT, NUM, STR, BOOL = {"type": "integer"}, {"type": "number"}, {"type": "string"}, {"type": "boolean"}


def obj(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def integers(**bounds: Any) -> dict[str, Any]:
    return {"type": "integer", **bounds}


def numbers(**bounds: Any) -> dict[str, Any]:
    return {"type": "number", **bounds}


def strings(**bounds: Any) -> dict[str, Any]:
    return {"type": "string", **bounds}


def arrays(items: Any = True, **bounds: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **bounds}


def objects(**keywords: Any) -> dict[str, Any]:
    return {"type": "object", **keywords}


def _bounds() -> list[Any]:
    """Every pair of a lower and an upper bound around places where the number of digits or the sign changes."""
    found: list[Any] = []
    for low, high in ((0, 9), (-9, 9), (-10, -1), (9, 11), (99, 101), (-101, 1000), (5, 5), (0, 0), (123, 4567)):
        found.append(integers(minimum=low, maximum=high))
        found.append(numbers(minimum=low, maximum=high))
        found.append(integers(exclusiveMinimum=low - 1, exclusiveMaximum=high + 1))
        found.append(numbers(exclusiveMinimum=low - 1, exclusiveMaximum=high + 1))
    for low, high in ((0.5, 1.5), (-0.25, 0.25), (0.001, 0.002), (-1.5, -0.5), (0.1, 10.01), (9.99, 10.0)):
        found.append(numbers(minimum=low, maximum=high))
        found.append(numbers(exclusiveMinimum=low, exclusiveMaximum=high))
    for at in (-100, -1, 0, 1, 7, 100, 65536):
        for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            found += [integers(**{keyword: at}), numbers(**{keyword: at})]
    found += [numbers(**{keyword: 2.5}) for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")]
    return [*found, integers(minimum=0.5, maximum=3.5), {"minimum": 3}, {"maximum": 3}, integers(minimum=-1e3)]


def _tree(depth: int, leaf: Any) -> Any:
    return leaf if depth == 0 else obj("left", left=_tree(depth - 1, leaf), right={"anyOf": [leaf, {"type": "null"}]})


NODE = {"$defs": {"node": obj("value", value=INT, next={"$ref": "#/$defs/node"})}, "$ref": "#/$defs/node"}
JSON_VALUE = {
    "$ref": "#/$defs/value",
    "$defs": {
        "value": {
            "anyOf": [
                {"type": ["null", "boolean", "number", "string"]},
                {"type": "array", "items": {"$ref": "#/$defs/value"}},
                {"type": "object", "additionalProperties": {"$ref": "#/$defs/value"}},
            ]
        }
    },
}
CALL = {
    "$defs": {
        "number": obj("kind", "value", kind={"const": "number"}, value=NUM),
        "call": obj("kind", "of", kind={"const": "call"}, of={"type": "array", "items": {"$ref": "#/$defs/any"}}),
        "any": {"anyOf": [{"$ref": "#/$defs/number"}, {"$ref": "#/$defs/call"}]},
    },
    "$ref": "#/$defs/any",
}

ACCEPTED: dict[str, list[Any]] = {
    "booleans and empties": [True, {}, {"title": "t"}, {"description": "", "default": None, "examples": []}],
    "type": [
        *({"type": kind} for kind in KINDS),
        *({"type": list(pair)} for pair in itertools.combinations(KINDS, 2)),
        *({"type": list(three)} for three in itertools.combinations(KINDS, 3) if "null" in three),
        {"type": list(KINDS)},
        {"type": ["string"]},
    ],
    "enum": [
        {"enum": [1]},
        {"enum": [1, 2, 3]},
        {"enum": ["a", "b"]},
        {"enum": ["", " ", "a b"]},
        {"enum": [None]},
        {"enum": [True, False]},
        {"enum": [0, False]},
        {"enum": [1, True]},
        {"enum": [[], {}]},
        {"enum": [[1, "a", None], {"k": [1]}]},
        {"enum": ["foo\nbar", "foo\rbar", "tab\t"]},
        {"enum": ['"', "\\", "/"]},
        {"enum": ["é", "日本", "🙂"]},
        {"enum": ["hello\0there"]},
        {"enum": [-1, 0.5, 1e3]},
        {"type": "string", "enum": ["a", 1]},
        {"type": "integer", "enum": [1, "a", 2]},
        {"type": ["integer", "null"], "enum": [1, None, "x"]},
        {"enum": ["abc", "abd", "b"], "pattern": "^ab"},
        {"enum": [1, 5, 10], "minimum": 5},
        {"enum": ["a", "bb", "ccc"], "maxLength": 2},
        {"enum": [f"item {i}" for i in range(200)]},
        {"enum": ["a", "a b", "a b c"]},
        {"enum": ["true", "null", "1"]},
        {"enum": [9007199254740991, -9007199254740992]},
    ],
    "const": [
        *({"const": value} for value in (0, 1, -7, 1.5, True, False, None, "", "a", "a\"b", "x\\y", "\n", "ü", "🙂")),
        {"const": []},
        {"const": {}},
        {"const": [[], [[]], {}]},
        {"const": {"a": 1, "b": [1, 2, {"c": None}]}},
        {"const": {"": ""}},
        {"const": "x" * 300},
        {"type": "integer", "const": 5},
        *({"const": value} for value in (1e10, 1e21, 1e-7, 1.0, -0.0, 0.1 + 0.2, 5e-324)),
    ],
    "numbers": _bounds(),
    "multipleOf": [
        *(integers(multipleOf=n) for n in (1, 2, 3, 5, 7, 10, 12, 25, 100)),
        integers(multipleOf=2, minimum=0, maximum=20),
        integers(multipleOf=3, minimum=-9, maximum=9),
        integers(multipleOf=5, exclusiveMinimum=0),
        numbers(multipleOf=0.5),
        numbers(multipleOf=0.25),
        numbers(multipleOf=1),
        numbers(multipleOf=10),
        numbers(multipleOf=0.5, minimum=0, maximum=2),
    ],
    "length": [
        *(strings(minLength=n) for n in (0, 1, 2, 5, 17)),
        *(strings(maxLength=n) for n in (0, 1, 2, 5, 17)),
        *(strings(minLength=low, maxLength=high) for low, high in ((0, 0), (1, 1), (2, 4), (3, 10), (16, 32))),
        {"minLength": 2},
        {"maxLength": 2},
        strings(minLength=2.0),
        strings(minLength=2, pattern="^a*$"),
        strings(maxLength=3, pattern="^[a-c]+$"),
        strings(minLength=2, maxLength=3, pattern="b"),
    ],
    "pattern": [
        strings(pattern=pattern)
        for pattern in (
            *("a", "^a", "a$", "^a$", "^a*$", "^$", "", "^.*$", "^.+$", ".", "^[abc]$", "^[^abc]$", "^[a-z0-9_]+$"),
            *("^a|b$", "^(a|b)$", "^(?:foo|bar)+$", "^a?b?c?$", "^a{3}$", "^a{2,4}$", "^a{2,}$", "^(ab){1,3}$"),
            *(r"^\d+$", r"^\d{4}-\d{2}-\d{2}$", r"^\w+$", r"^\W+$", r"^\s+$", r"^\S+$", r"^\D+$"),
            r"^[\w.-]+@[\w-]+\.\w+$",
            *(r"^\.$", r"^\\$", r"^\/$", r"^\$$", r"^\^$", r"^\+1$", r"^\(\d{3}\)$", r"^\[x\]$", r"^\{\}$", "^\"$"),
            *("^é+$", "^[а-я]+$", "^日本$", "^🙂{2}$", r"^\u00e9$", r"^\t$", r"^\n$"),
            *("^#[0-9a-fA-F]{6}$", r"^v\d+(\.\d+){2}$", "^[A-Z]{2}[0-9]{2}( ?[A-Z0-9]{4}){3}$", "^(0|[1-9][0-9]*)$"),
        )
    ]
    + [{"pattern": "^a+$"}, {"type": ["string", "integer"], "pattern": "^x"}],
    "format": [
        *(strings(format=name) for name in ("date-time", "time", "date", "duration", "email", "hostname", "ipv4")),
        *(strings(format=name) for name in ("ipv6", "uuid", "uri", "int32", "password", "binary", "made-up")),
        {"format": "date"},
        {"type": ["string", "null"], "format": "uuid"},
        obj("at", at=strings(format="date-time")),
        arrays(strings(format="ipv4"), minItems=1, maxItems=3),
        {"type": "integer", "format": "int64"},
        {"type": "number", "format": "double"},
    ],
    "properties": [
        objects(properties={}),
        objects(properties={"a": INT}),
        objects(properties={"a": INT, "b": STR}),
        objects(properties={"a": True}),
        objects(properties={"a": {}}),
        objects(properties={"a": False}),
        {"properties": {"a": INT}},
        obj(),
        obj(a=INT),
        obj("a", a=INT),
        obj("a", "b", a=INT, b=STR),
        obj("b", a=INT, b=STR),
        obj("a", a=INT, b=STR, c=BOOL),
        obj("c", a=INT, b=STR, c=BOOL),
        obj("a", "c", a=INT, b=STR, c=BOOL),
        obj(**{f"p{i}": INT for i in range(12)}),
        obj(*[f"p{i}" for i in range(12)], **{f"p{i}": INT for i in range(12)}),
        *(obj(name, **{name: INT}) for name in ("", " ", "a b", 'q"', "b\\s", "new\nline", "tab\t", "é", "日本", "🙂")),
        *(obj(name, **{name: INT}) for name in ("$ref", "type", "properties", "__proto__", "constructor", "0", "a.b")),
        objects(properties={"foo bar": INT, "foo\tbar": STR}),
        obj("a", a={"type": "null"}),
        obj("a", a={"type": ["integer", "null"]}),
        obj("a", a={"enum": ["x", "y"]}),
        obj("a", a=obj("b", b=obj("c", c=INT))),
    ],
    "required": [
        objects(required=[]),
        objects(required=["a"]),
        objects(required=["a", "b"]),
        objects(properties={"a": INT}, required=["a"]),
        objects(properties={"a": INT}, required=["b"]),
        objects(properties={"a": INT, "b": INT}, required=["b", "a"]),
        {"required": ["a"]},
        objects(required=["q\"uote", "back\\slash"]),
        objects(required=["é", "日本"]),
        objects(properties={"a": INT}, required=["a", "b"], additionalProperties=STR),
    ],
    "additionalProperties": [
        objects(additionalProperties=False),
        objects(additionalProperties=True),
        objects(additionalProperties=INT),
        objects(additionalProperties={}),
        objects(additionalProperties={"type": ["string", "null"]}),
        objects(additionalProperties=arrays(INT)),
        objects(additionalProperties=objects(additionalProperties=BOOL)),
        objects(properties={"a": INT}, additionalProperties=BOOL),
        objects(properties={"a": INT, "ab": INT}, additionalProperties=STR),
        objects(properties={"a": INT}, additionalProperties=False, required=["a"]),
        objects(properties={"a": INT}, additionalProperties=obj("x", x=INT)),
        objects(properties={"é": INT}, additionalProperties=False),
        {"additionalProperties": INT},
    ],
    "patternProperties": [
        objects(patternProperties={"^a": INT}),
        objects(patternProperties={"^a": INT}, additionalProperties=False),
        objects(patternProperties={"^a": INT, "^b": STR}, additionalProperties=False),
        objects(patternProperties={"^x-": {}}, properties={"a": INT}, additionalProperties=False),
        objects(patternProperties={"^[0-9]+$": BOOL}, additionalProperties=STR),
        objects(patternProperties={"^a": INT}, properties={"b": STR}, required=["b"]),
        objects(patternProperties={"^é": INT}, additionalProperties=False),
        objects(patternProperties={"z$": STR}, additionalProperties=False),
        objects(patternProperties={"^.*$": NUM}),
    ],
    "counts of properties": [
        *(objects(minProperties=n) for n in (0, 1)),
        *(objects(maxProperties=n) for n in (0, 1, 2, 5)),
        objects(minProperties=1, maxProperties=1),
        objects(minProperties=1, maxProperties=3, additionalProperties=INT),
        objects(properties={"a": INT, "b": INT, "c": INT}, maxProperties=1, additionalProperties=False),
        objects(required=["a"], minProperties=2),
        objects(required=["a"], maxProperties=1),
    ],
    "items": [
        arrays(),
        arrays({}),
        *(arrays({"type": kind}) for kind in KINDS),
        arrays(False),
        arrays({"enum": [1, 2]}),
        arrays(arrays(INT)),
        arrays(arrays(arrays(STR))),
        arrays(obj("a", a=INT)),
        arrays({"anyOf": [INT, STR]}),
        {"items": INT},
        arrays(strings(maxLength=2)),
        arrays(integers(minimum=1, maximum=6)),
    ],
    "prefixItems": [
        {"type": "array", "prefixItems": [INT]},
        {"type": "array", "prefixItems": [INT, STR]},
        {"type": "array", "prefixItems": [INT, STR], "items": False},
        {"type": "array", "prefixItems": [INT, STR], "items": BOOL},
        {"type": "array", "prefixItems": [INT, STR], "items": False, "minItems": 2},
        {"type": "array", "prefixItems": [INT, STR], "minItems": 1, "maxItems": 2},
        {"type": "array", "prefixItems": [True, {"const": 1}], "minItems": 2},
        {"type": "array", "prefixItems": [arrays(INT), obj("a", a=INT)], "items": False},
        {"prefixItems": [INT]},
        {"type": "array", "items": [INT, STR]},
        {"type": "array", "items": [INT, STR], "additionalItems": False},
        {"type": "array", "items": [INT], "additionalItems": STR},
    ],
    "counts of items": [
        *(arrays(minItems=n) for n in (0, 1, 2, 5)),
        *(arrays(maxItems=n) for n in (0, 1, 2, 5)),
        *(arrays(INT, minItems=low, maxItems=high) for low, high in ((0, 0), (1, 1), (2, 2), (1, 3), (5, 8))),
        arrays(arrays(INT, minItems=2, maxItems=2), minItems=2, maxItems=2),
        {"minItems": 1},
        {"maxItems": 1},
    ],
    "anyOf": [
        {"anyOf": [INT]},
        {"anyOf": [INT, STR]},
        {"anyOf": [INT, NUM]},
        {"anyOf": [INT, integers(minimum=2)]},
        {"anyOf": [{"type": "null"}, obj("a", a=INT)]},
        {"anyOf": [obj("a", a=INT), obj("b", b=STR)]},
        {"anyOf": [obj("kind", kind={"const": k}, value={"type": t}) for k, t in (("a", "integer"), ("b", "string"))]},
        {"anyOf": [True, INT]},
        {"anyOf": [{}, STR]},
        {"anyOf": [strings(pattern="^a"), strings(minLength=3)]},
        {"type": "string", "anyOf": [{"maxLength": 2}, {"minLength": 4}]},
        {"anyOf": [{"anyOf": [INT, BOOL]}, {"anyOf": [STR]}]},
        {"anyOf": [{"const": 1}, {"const": "a"}, {"const": None}]},
        {"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"anyOf": [arrays(INT), arrays(STR)]},
        {"anyOf": [False, INT]},
    ],
    "oneOf": [
        {"oneOf": [INT]},
        {"oneOf": [INT, STR]},
        {"oneOf": [{"const": "a"}, {"const": "b"}]},
        {"oneOf": [{"type": "null"}, obj("a", a=INT)]},
        {"oneOf": [obj("t", t={"const": "x"}, v=INT), obj("t", t={"const": "y"}, v=STR)]},
        {"oneOf": [BOOL, arrays(BOOL), STR]},
    ],
    "allOf": [
        {"allOf": [INT]},
        {"allOf": [{}]},
        {"allOf": [True, INT]},
        {"allOf": [{}, {"minimum": 3}, INT]},
        {"allOf": [integers(minimum=2), integers(maximum=4)]},
        {"allOf": [strings(minLength=2), strings(maxLength=3)]},
        {"allOf": [strings(pattern="^a"), strings(pattern="z$")]},
        {"allOf": [{"properties": {"a": INT}, "required": ["a"]}, objects(properties={"b": STR}, required=["b"])]},
        {"type": "object", "properties": {"a": INT}, "allOf": [{"required": ["a"]}]},
        {"allOf": [{"type": ["integer", "string"]}, {"type": ["string", "null"]}]},
        {"allOf": [{"enum": [1, 2, 3]}, {"enum": [2, 3, 4]}]},
        {"allOf": [integers(multipleOf=2), integers(multipleOf=3)]},
        {"allOf": [arrays(INT), arrays(maxItems=2)]},
        {"allOf": [{"anyOf": [INT, STR]}, {"anyOf": [STR, BOOL]}]},
    ],
    "$ref": [
        {"$ref": "#/$defs/a", "$defs": {"a": INT}},
        {"$ref": "#/definitions/a", "definitions": {"a": STR}},
        {"$ref": "#/$defs/b", "$defs": {"a": INT, "b": {"$ref": "#/$defs/a"}}},
        {"$ref": "#/$defs/a~1b", "$defs": {"a/b": INT}},
        {"$ref": "#/$defs/a~0b", "$defs": {"a~b": INT}},
        {"$ref": "#/$defs/per%25cent", "$defs": {"per%cent": INT}},
        {"$ref": "#/$defs/%C3%A9", "$defs": {"é": INT}},
        obj("a", "b", a={"$ref": "#/properties/b"}, b=INT),
        {"$ref": "#/$defs/a", "$defs": {"a": INT}, "minimum": 3},
        {"$ref": "#/$defs/a", "$defs": {"a": STR}, "maxLength": 2},
        {"$ref": "#/$defs/a", "$defs": {"a": objects(properties={"x": INT})}, "required": ["x"]},
        {**arrays({"$ref": "#/$defs/a"}), "$defs": {"a": {"enum": [1, 2]}}},
        NODE,
        JSON_VALUE,
        CALL,
        obj(child={"$ref": "#"}),
        arrays({"$ref": "#"}, maxItems=2),
        {"anyOf": [INT, arrays({"$ref": "#"})]},
        {**obj("left", "right", left={"$ref": "#/$defs/t"}, right={"$ref": "#/$defs/t"}),
         "$defs": {"t": {"anyOf": [{"type": "null"}, obj("l", l={"$ref": "#/$defs/t"}, r={"$ref": "#/$defs/t"})]}}},
        {"$defs": {"even": obj(n={"$ref": "#/$defs/odd"}), "odd": obj("n", n={"$ref": "#/$defs/even"})},
         "$ref": "#/$defs/even"},
    ],
    "annotations": [
        {"type": "integer", "title": "T", "description": "D", "default": 3, "examples": [1], "deprecated": True},
        {"type": "string", "$comment": "c", "readOnly": True, "writeOnly": False},
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "integer"},
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "integer"},
        {"$id": "https://example.com/s", "type": "string"},
        {"type": "string", "x-made-up": {"not": 1}},
        {"uniqueItems": False, "type": "array"},
        {"unevaluatedProperties": True, "type": "object"},
        {"type": "string", "contentMediaType": "application/json", "contentEncoding": "base64"},
    ],
    "nested": [
        *(_tree(depth, INT) for depth in (1, 2, 4, 8)),
        obj("rows", rows=arrays(obj("id", "tags", id=INT, tags=arrays(strings(maxLength=3), maxItems=2)), maxItems=2)),
        obj("person", person=obj("name", "age", name=STR, age=integers(minimum=0, maximum=120))),
        obj("m", m=arrays(arrays(NUM, minItems=2, maxItems=2), minItems=2, maxItems=2)),
        obj("a", a={"anyOf": [obj("b", b=arrays(INT)), {"type": "null"}]}),
        objects(additionalProperties=arrays(objects(additionalProperties=arrays(INT)))),
        obj("steps", "answer", steps=arrays(obj("why", "what", why=STR, what=STR), minItems=1, maxItems=2), answer=STR),
    ],
}  # fmt: skip

NO = objects(properties={"a": True})
REFUSED: dict[str, list[tuple[Any, str]]] = {
    "nothing matches": [
        (False, ""),
        (integers(minimum=3, maximum=2), "minimum"),
        (integers(exclusiveMinimum=1, exclusiveMaximum=2), ""),
        (strings(minLength=3, maxLength=2), "minLength"),
        ({"allOf": [INT, STR]}, ""),
        ({"enum": []}, "enum"),
        (arrays(minItems=2, maxItems=1), "minItems"),
        (arrays(False, minItems=1), "items"),
        (objects(properties={"a": False}, required=["a"]), "properties.a"),
        ({"type": "string", "const": 5}, "const"),
        (integers(enum=["a"]), "enum"),
        ({"allOf": [{"enum": [1]}, {"enum": [2]}]}, ""),
    ],
    "not a schema": [
        (5, ""),
        ("string", ""),
        ([INT], ""),
        ({"type": "strin"}, "type"),
        ({"type": ["string", "date"]}, "type"),
        ({"type": 5}, ""),
        ({"properties": [INT]}, "properties"),
        ({"properties": {"a": 5}}, "properties.a"),
        ({"items": "x"}, "items"),
        ({"anyOf": INT}, "anyOf"),
        ({"anyOf": [5]}, "anyOf[0]"),
        ({"prefixItems": {}}, "prefixItems"),
        ({"$defs": [], "type": "string"}, "$defs"),
        (strings(format=5), "format"),
        (strings(pattern="("), "pattern"),
        (strings(pattern="a{2,1}"), "pattern"),
        (strings(minLength=-1), ""),
        (strings(minLength="2"), ""),
        (strings(minLength=1.5), ""),
        (integers(minimum="3"), ""),
        (integers(multipleOf=0), ""),
        (objects(required="a"), ""),
    ],
    "references": [
        ({"$ref": "#/$defs/none"}, "$ref"),
        ({"$ref": "https://example.com/other"}, "$ref"),
        ({"$ref": "other.json"}, "$ref"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "$defs.a.$ref"),
        ({"$dynamicRef": "#x"}, "$dynamicRef"),
        ({"$recursiveRef": "#"}, "$recursiveRef"),
    ],
    "keywords": [
        ({"not": INT}, "not"),
        (strings(**{"not": {"const": "a"}}), "not"),
        ({"if": INT, "then": {"minimum": 3}}, "if"),
        ({"then": {"minimum": 3}}, "then"),
        ({"else": {"minimum": 3}}, "else"),
        (arrays(INT, uniqueItems=True), "uniqueItems"),
        (arrays(contains=INT), "contains"),
        (arrays(minContains=1), "minContains"),
        (arrays(maxContains=1), "maxContains"),
        (objects(propertyNames={"pattern": "^a"}), "propertyNames"),
        (objects(dependentRequired={"a": ["b"]}), "dependentRequired"),
        (objects(dependentSchemas={"a": NO}), "dependentSchemas"),
        (objects(dependencies={"a": ["b"]}), "dependencies"),
        ({**NO, "unevaluatedProperties": False}, "unevaluatedProperties"),
        (arrays(unevaluatedItems=False), "unevaluatedItems"),
        (obj(a=obj(b=arrays(INT, uniqueItems=True))), "properties.a.properties.b.uniqueItems"),
        ({"anyOf": [INT, arrays(contains=STR)]}, "anyOf[1].contains"),
        (objects(additionalProperties={"not": INT}), "additionalProperties.not"),
        (objects(patternProperties={"^a": {"not": INT}}), "patternProperties.^a.not"),
        ({"type": "array", "prefixItems": [INT, {"if": True}]}, "prefixItems[1].if"),
        ({"$defs": {"a": {"not": {}}}, "$ref": "#/$defs/a"}, "$defs.a.not"),
    ],
    "formats": [
        (strings(format=name), "format")
        for name in ("idn-email", "idn-hostname", "uri-reference", "iri", "uri-template", "json-pointer", "regex")
    ],
    "patterns": [
        (strings(pattern=pattern), "pattern")
        for pattern in ("(?=a)b", "(?!a)b", "(?<=a)b", r"\bword\b", r"(a)\1", "[", "*")
    ],
    "what a grammar cannot count": [
        (objects(minProperties=2), "minProperties"),
        (objects(required=["a"], minProperties=3), "minProperties"),
        (objects(patternProperties={"^a": INT}, additionalProperties=False, minProperties=2), "minProperties"),
        (objects(properties={"a": INT, "b": INT}, minProperties=2, additionalProperties=False), "minProperties"),
    ],
    "choices that overlap": [
        ({"oneOf": [INT, NUM]}, "oneOf"),
        ({"oneOf": [integers(minimum=2), integers(maximum=3)]}, "oneOf"),
        ({"oneOf": [integers(maximum=3), integers(minimum=5)]}, "oneOf"),
        ({"oneOf": [strings(minLength=2), strings(maxLength=4)]}, "oneOf"),
        ({"oneOf": [objects(required=["a"]), objects(required=["b"])]}, "oneOf"),
        (obj(x={"oneOf": [INT, NUM]}), "properties.x.oneOf"),
    ],
    "numbers that a double cannot hold": [
        ({"const": 2**53 + 1}, "const"),
        ({"enum": [1, 12345678901234567890123]}, "enum"),
        ({"const": {"a": [-(2**60) - 1]}}, "const"),
        (integers(minimum=2**63 - 1), "minimum"),
        (integers(maximum=10**400), "maximum"),
    ],
}

# What schemas are tried with, beside what is drawn from their own grammars.
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 5, 7, 9, 10, 12, 99, 100, 101, -10, 1000, 65536, 123456789),
    *(0.5, -0.5, 1.5, 2.5, 0.25, 0.001, 0.0015, 9.995, -100.5, 10.01),
    *("", "a", "b", "ab", "abc", "aaaa", "a b", "é", "日本", "🙂🙂", '"', "\\", "\n", "foo\nbar", "item 7", "x" * 20),
    *("2026-11-23", "12:30:00Z", "2026-11-23T12:30:00Z", "P1D", "a@example.com", "example.com", "127.0.0.1", "::1"),
    *("123e4567-e89b-12d3-a456-426614174000", "https://example.com/x?y#z", "v1.2.3", "#ff00aa", "12", "(123)"),
    *([], [1], [1, 2], [1, "a"], ["a", 1], [1, "a", True], [[]], [[1], [2, 3]], [None], [True, False]),
    [1, 2, 3, 4, 5, 6],
    *({}, {"a": 1}, {"a": "x"}, {"b": 1}, {"b": "x"}, {"a": 1, "b": "x"}, {"a": 1, "b": 2}, {"a": None}, {"x-y": 1}),
    *({"a": {"b": {"c": 1}}}, {"value": 1}, {"value": 1, "next": {"value": 2}}, {"1": True, "z": "s"}, {"child": {}}),
    *({"é": 1}, {"": 1}, {"a": [1, 2]}, {"kind": "number", "value": 1.5}, {"a": 1, "b": "x", "c": True}, {"abc": 3}),
    *({"left": 1}, {"left": 1, "right": None}, {"t": "x", "v": 1}, {"t": "y", "v": 1}, {"q": {"r": [{"s": 1}]}}),
]  # fmt: skip
