"""Schemas that only an answer without end could match, or none."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.structured import StructuredOutputs
from octavo.grammar.endless import prune
from octavo.grammar.schema import GrammarError, prepare
from octavo.grammar.source import translate
from tests.text.parsing.test_forms import accepts, vocabulary

NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}, "required": ["next"]}
A, B = {"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}


def holds(inner: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": inner}, "required": ["x"]}


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"$defs": {"Node": NODE}, "$ref": "#/$defs/Node"}, "$defs.Node.properties.next.$ref"),
        (holds({"$ref": "#"}), "properties.x.$ref"),
        ({**holds(A), "$defs": {"A": holds(B), "B": holds(A)}}, "$defs.B.properties.x.$ref"),
        ({"type": "array", "minItems": 1, "items": {"$ref": "#"}}, "items.$ref"),
        ({"type": "array", "minItems": 1, "prefixItems": [{"type": "string"}, {}, {"enum": []}]}, None),
        ({"type": "array", "minItems": 3, "prefixItems": [{}, {}, {"enum": []}]}, "prefixItems[2].enum"),
        ({"anyOf": [holds({"$ref": "#"}), {"type": "array", "items": {"$ref": "#"}, "minItems": 2}]}, "anyOf"),
        ({"anyOf": [holds({"$ref": "#"}), {"type": "null"}]}, None),
        ({"allOf": [{"type": "object"}, holds({"const": 1, "type": "string"})]}, "allOf[1].properties.x.const"),
        ({"type": "string", "enum": [1, 2]}, "enum"),
        ({"type": ["string", "null"], "enum": [1, None]}, None),
        ({"type": "integer", "enum": [1.5, True]}, "enum"),
        ({"type": "number", "const": 5, "maximum": 4}, "const"),
        ({"const": "a", "enum": ["b"]}, "enum"),
        ({"const": 1, "enum": [True]}, "enum"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum"),
        ({"type": ["integer", "string"], "minimum": 3, "maximum": 2}, None),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "required"),
        ({"type": "object", "required": ["a"], "properties": {"a": False}}, "properties.a"),
        ({"$ref": "#/nowhere"}, None),
        ({"$ref": "https://example.com/x"}, None),
        ({"type": "object", "properties": {"x": {"$ref": "#"}}}, None),
    ],
)
def test_what_can_be_told(schema: Any, path: str | None) -> None:
    if path is None:
        prune(prepare(schema))
        return
    with pytest.raises(GrammarError) as caught:
        prune(prepare(schema))
    assert caught.value.path == path and "ends" in caught.value.message


def test_what_need_not_be_there_is_left_out() -> None:
    endless = holds({"$ref": "#/$defs/E"})
    schema = {
        "type": "object",
        "properties": {
            "never": {"$ref": "#/$defs/E"},
            "list": {"type": "array", "items": {"$ref": "#/$defs/E"}},
            "either": {"anyOf": [{"$ref": "#/$defs/E"}, {"type": "integer"}]},
        },
        "additionalProperties": False,
        "$defs": {"E": endless},
    }
    source = translate(StructuredOutputs(json=schema), vocabulary())
    for text, right in (
        ("{}", True),
        ('{"list": []}', True),
        ('{"either": 1}', True),
        ('{"never', False),
        ('{"list": [{', False),
        ('{"either": {', False),
    ):
        found = vocabulary().matcher(source)
        ids = vocabulary()._tokenizer.encode(text, add_special_tokens=False)
        assert (found.validate_tokens(ids) == len(ids)) == right, text
    assert accepts(vocabulary().matcher(source), '{"list": [], "either": 5}')


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["", "a", "bb"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=4,
)
KINDS = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
SCHEMAS = st.deferred(
    lambda: st.fixed_dictionaries(
        {},
        optional={
            "type": KINDS | st.lists(KINDS, min_size=1, max_size=2),
            "enum": st.lists(VALUES, max_size=2),
            "const": VALUES,
            "minLength": st.integers(0, 2),
            "maxLength": st.integers(0, 2),
            "minimum": st.integers(0, 2),
            "maximum": st.integers(0, 2),
            "minItems": st.integers(0, 2),
            "required": st.lists(st.sampled_from(["a", "b"]), max_size=2, unique=True),
            "properties": st.dictionaries(st.sampled_from(["a", "b"]), SCHEMAS, max_size=2),
            "items": SCHEMAS,
            "anyOf": st.lists(SCHEMAS, min_size=1, max_size=2),
            "allOf": st.lists(SCHEMAS, min_size=1, max_size=2),
            "$ref": st.sampled_from(["#", "#/properties/a", "#/items"]),
        },
    )
)


@given(SCHEMAS, VALUES)
def test_a_schema_with_a_value_is_never_refused(schema: Any, value: Any) -> None:
    """And what is left of it matches the same values."""
    try:
        valid = jsonschema.Draft202012Validator(schema).is_valid(value)
    except (jsonschema.exceptions._WrappedReferencingError, RecursionError):
        return
    try:
        left = prune(prepare(schema))
    except GrammarError:
        assert not valid
        return
    try:
        assert jsonschema.Draft202012Validator(left).is_valid(value) == valid
    except jsonschema.exceptions._WrappedReferencingError:
        assert not valid  # what it referred to was left out
