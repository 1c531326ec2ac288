"""Every schema of the suite is refused with the path to what cannot be enforced, or followed by what its masks allow.

`jsonschema` is the judge twice: of texts that are drawn at random from a schema's masks, and of values that all schemas
are tried with, which the grammar must take where the schema does.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from octavo.core.structured import StructuredOutputs
from octavo.grammar.schema import GrammarError
from octavo.grammar.source import translate
from octavo.grammar.vocabulary import Vocabulary
from octavo.text.tokenizer import load_tokenizer
from tests.builders import VOCAB_SIZE, save_tokenizer
from tests.grammar.schema_suite import ACCEPTED, REFUSED, VALUES
from tests.grammar.walks import walk

# Values that schemas take and their grammars do not, in JSON.
NARROWER = {
    '{"const": -0.0}': ["0"],
    # Written with as many decimals as the step has.
    '{"type": "number", "multipleOf": 0.25}': ["0.5", "-0.5", "1.5", "2.5", "-100.5"],
    # Keys come in the order of the schema: those that are named, then those of the patterns.
    '{"type": "object", "patternProperties": {"^a": {"type": "integer"}}, "properties": {"b": {"type": "string"}}, '
    '"required": ["b"]}': ['{"a": 1, "b": "x"}', '{"a": 1, "b": "x", "c": true}'],
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return Vocabulary(load_tokenizer(folder), VOCAB_SIZE)


def pattern(validator: Any, expected: str, value: Any, schema: Any) -> Iterable[jsonschema.ValidationError]:
    r"""JavaScript's patterns in Python: "$" is only at the end, and \w and \d are ASCII."""
    if expected.endswith("$") and not expected.endswith(r"\$"):
        expected = expected[:-1] + r"\Z"
    flags = re.ASCII if re.search(r"\\[wWdD]", expected) else re.UNICODE
    if isinstance(value, str) and not re.search(expected, value, flags):
        yield jsonschema.ValidationError(f"{value!r} does not match {expected}")


JavaScript = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": pattern})
CHECKED = ("date", "ipv4", "ipv6", "uuid")  # formats that the validator knows without further packages


def judge(schema: Any) -> Any:
    if isinstance(schema, dict) and isinstance(schema.get("items"), list):  # as before 2020-12
        rest = {key: value for key, value in schema.items() if key not in ("items", "additionalItems")}
        schema = {**rest, "prefixItems": schema["items"], "items": schema.get("additionalItems", True)}
    return JavaScript(schema, format_checker=jsonschema.FormatChecker(CHECKED))


def try_schema(vocabulary: Vocabulary, schema: Any, walks: int, values: list[Any]) -> Counter[str]:
    source = translate(StructuredOutputs(json=schema), vocabulary)
    validator, rng = judge(schema), np.random.default_rng(len(str(schema)))
    found: Counter[str] = Counter(schemas=1)
    for i in range(walks):
        text = walk(vocabulary, source, rng, free_tokens=(12, 40, 100)[i % 3])
        if text is None:
            found["without an end"] += 1
            continue
        validator.validate(json.loads(text))
        found["validated"] += 1
    narrower = NARROWER.get(json.dumps(schema), ())
    for value in values:
        text = json.dumps(value, ensure_ascii=False)
        ids = vocabulary._tokenizer.encode(text, add_special_tokens=False)
        matcher = vocabulary.matcher(source)
        taken = matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()
        assert taken == (validator.is_valid(value) and text not in narrower), (schema, value)
        found["taken" if taken else "not taken"] += 1
    return found


def try_all(vocabulary: Vocabulary, walks: int, step: int) -> Counter[str]:
    """`step`: each schema is tried with every so manieth value."""
    found: Counter[str] = Counter()
    for group, schemas in ACCEPTED.items():
        # The validator takes any text for most formats.
        values = [] if group == "format" else VALUES
        for i, schema in enumerate(schemas):
            found += try_schema(vocabulary, schema, walks, values[i % step :: step])
    return found


def test_the_suite(vocabulary: Vocabulary) -> None:
    found = try_all(vocabulary, walks=1, step=8)
    assert found["schemas"] == sum(map(len, ACCEPTED.values())) > 500
    assert found["validated"] > 0.97 * found["schemas"]
    assert found["taken"] > 700 and found["not taken"] > 4000


@pytest.mark.slow
def test_the_suite_at_length(vocabulary: Vocabulary) -> None:
    found = try_all(vocabulary, walks=30, step=1)
    assert found["validated"] > 0.97 * 30 * found["schemas"]
    assert found["taken"] > 6000 and found["not taken"] > 40_000


@pytest.mark.parametrize("group", REFUSED)
def test_what_is_refused(vocabulary: Vocabulary, group: str) -> None:
    for schema, path in REFUSED[group]:
        with pytest.raises(GrammarError) as caught:
            translate(StructuredOutputs(json=schema), vocabulary)
        assert caught.value.path == path, schema
