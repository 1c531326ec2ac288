"""Whatever a mask lets a model write validates: random walks through the grammars of random schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from octavo.core.structured import StructuredOutputs
from octavo.grammar.schema import GrammarError
from octavo.grammar.source import translate
from octavo.grammar.vocabulary import Vocabulary
from octavo.text.tokenizer import load_tokenizer
from tests.builders import VOCAB_SIZE, save_tokenizer
from tests.grammar.walks import walk

NAMES = st.sampled_from(["a", "b", "id", "x y", 'q"', "é"])


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return Vocabulary(load_tokenizer(folder), VOCAB_SIZE)


def leaves() -> st.SearchStrategy[Any]:
    small, sizes = st.integers(-300, 300), st.integers(0, 4)
    numbers = st.fixed_dictionaries(
        {"type": st.sampled_from(["integer", "number"])},
        optional={
            "minimum": small,
            "exclusiveMinimum": small,
            "maximum": small,
            "exclusiveMaximum": small,
            "multipleOf": st.sampled_from([1, 2, 5, 0.5]),
        },
    )
    strings = st.fixed_dictionaries({"type": st.just("string")}, optional={"minLength": sizes, "maxLength": sizes})
    patterns = st.sampled_from(["^a", "b$", "[0-9]{2}", "^(x|yy)*$", r"^\w+\.\d$", "é", "^$", r"^\S+ \S+$"])
    formats = st.sampled_from(["date", "time", "date-time", "ipv4", "ipv6", "uuid", "email", "hostname", "duration"])
    values = st.one_of(
        st.none(), st.booleans(), st.integers(-9, 9), st.sampled_from([0.5, -1.25, 0.003, 1e10]), st.text(max_size=4)
    )
    return st.one_of(
        numbers,
        strings,
        patterns.map(lambda pattern: {"type": "string", "pattern": pattern}),
        formats.map(lambda name: {"type": "string", "format": name}),
        values.map(lambda value: {"const": value}),
        st.lists(values, min_size=1, max_size=3).map(lambda found: {"enum": found}),
        st.sampled_from([{}, True, {"type": ["null", "boolean"]}, {"type": "object"}, {"type": "array"}]),
    )


def nests(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    sizes = st.integers(0, 3)
    properties = st.dictionaries(NAMES, inner, max_size=4)
    objects = st.fixed_dictionaries(
        {"type": st.just("object")},
        optional={
            "properties": properties,
            "required": st.lists(NAMES, unique=True, max_size=2),
            "additionalProperties": st.one_of(st.booleans(), inner),
            "patternProperties": st.dictionaries(st.sampled_from(["^a", "d$", "^x "]), inner, min_size=1, max_size=1),
            "minProperties": sizes,
            "maxProperties": sizes,
        },
    )
    arrays = st.fixed_dictionaries(
        {"type": st.just("array")},
        optional={
            "items": inner,
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "minItems": sizes,
            "maxItems": sizes,
        },
    )
    several = st.lists(inner, min_size=1, max_size=2)
    unions = st.tuples(st.sampled_from(["anyOf", "oneOf", "allOf"]), several).map(lambda pair: {pair[0]: pair[1]})
    mixed = st.tuples(objects, unions).map(lambda pair: {**pair[0], **pair[1]})
    referring = inner.map(lambda schema: {"$defs": {"d": schema}, "items": {"$ref": "#/$defs/d"}, "type": "array"})
    return st.one_of(objects, objects, arrays, unions, mixed, referring)


@settings(max_examples=150, deadline=None)
@given(st.recursive(leaves(), nests, max_leaves=6), st.integers(0, 2**32))
def test_what_may_be_written_validates(vocabulary: Vocabulary, schema: Any, seed: int):
    try:
        source = translate(StructuredOutputs(json=schema), vocabulary)
    except GrammarError:
        assume(False)
    rng = np.random.default_rng(seed)
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.FormatChecker(["ipv4", "ipv6", "uuid"])
    )
    for _ in range(3):
        text = walk(vocabulary, source, rng)
        if text is not None:
            validator.validate(json.loads(text))
