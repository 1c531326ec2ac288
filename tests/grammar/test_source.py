"""What grammars let through: schemas with values that they accept and refuse, regexes, tags."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.core.structured import StructuredOutputs
from octavo.demo import MODEL_DIR
from octavo.grammar.schema import GrammarError
from octavo.grammar.source import translate
from octavo.grammar.vocabulary import Vocabulary
from octavo.text.tokenizer import load_tokenizer
from tests.builders import VOCAB_SIZE, tokenizer_json

SPEC = importlib.util.spec_from_file_location("cases", Path(__file__).parents[2] / "bench" / "grammar_cases.py")
assert SPEC is not None and SPEC.loader is not None
cases = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(cases)

# What cannot be followed; all other cases must be right.
REFUSED = {
    *("oneOf overlapping", "unevaluatedProperties", "not", "if", "uniqueItems", "contains", "dependentRequired"),
    *("propertyNames", "cannot be", "false schema"),
}


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    tokenizer = load_tokenizer(MODEL_DIR)
    return Vocabulary(tokenizer, tokenizer.vocab_size)


class Language:
    """The texts that a grammar lets through."""

    def __init__(self, vocabulary: Vocabulary, **asked: Any) -> None:
        self.vocabulary = vocabulary
        self.source = translate(StructuredOutputs(**asked), vocabulary)

    def __contains__(self, text: str | list[int]) -> bool:
        ids = self.vocabulary._tokenizer.encode(text, add_special_tokens=False) if isinstance(text, str) else text
        matcher = self.vocabulary.matcher(self.source)
        return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


@pytest.mark.parametrize(("name", "schema", "good", "bad"), cases.CASES, ids=[case[0] for case in cases.CASES])
def test_schemas(vocabulary: Vocabulary, name: str, schema: Any, good: list[Any], bad: list[Any]):
    if name in REFUSED:
        with pytest.raises(GrammarError):
            Language(vocabulary, json=schema)
        return
    language = Language(vocabulary, json=schema)
    for value in good:
        assert json.dumps(value, ensure_ascii=False) in language
        assert json.dumps(value, ensure_ascii=False, separators=(",", ":")) in language
    for value in bad:
        assert json.dumps(value, ensure_ascii=False) not in language


def test_options(vocabulary: Vocabulary):
    schema = {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {}}}}}
    free, compact = Language(vocabulary, json=schema), Language(vocabulary, json=schema, disable_any_whitespace=True)
    closed = Language(vocabulary, json=schema, disable_additional_properties=True)
    spaced = Language(vocabulary, json=schema, whitespace_pattern=" ?")
    pretty = json.dumps({"a": {"b": 1}}, indent=2)
    assert pretty in free and pretty not in compact and pretty not in spaced
    assert '{"a": {"b": 1}}' in spaced and '{"a": {"b": 1}}' not in compact and '{"a":{"b":1}}' in compact
    assert '{"a": {"c": 1}}' in free and '{"a": {"c": 1}}' not in closed and '{"a": {"b": 1}}' in closed
    assert '{"a": ' + " " * 200 + "{}}" not in free, "a model could write spaces for ever"


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"\d+", ["1", "42"], ["٣", "", "a"]),
        (r"^a|b$", ["a", "b"], ["ab", "x"]),
        (r"a\$", ["a$"], ["a"]),
        (r"a\\$", ["a\\"], ["a", "a\\$"]),
        ("[/]/\n", ["//\n"], ["//"]),
        (r"(?i)yes", ["YES", "yEs"], ["no"]),
        (r"é{2}|\p{Lu}", ["éé", "Ä"], ["é", "a"]),
    ],
)
def test_regexes(vocabulary: Vocabulary, pattern: str, good: list[str], bad: list[str]):
    for language in (
        Language(vocabulary, regex=pattern),
        Language(vocabulary, structural_tag={"format": {"type": "regex", "pattern": pattern}}),
    ):
        assert all(text in language for text in good) and not any(text in language for text in bad)


CALL = {"type": "json_schema", "json_schema": {"type": "object", "required": ["x"]}}


def tag(content: Any, begin: str = "<f>", end: str = "</f>") -> Any:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        ({"type": "const_string", "value": 'a"\n'}, ['a"\n'], ["a"]),
        ({"type": "or", "elements": [{"type": "const_string", "value": ""}, CALL]}, ["", '{"x":1}'], ["{}"]),
        (tag({"type": "any_text"}), ["<f>a < b</f>", "<f></f>"], ["<f>", "a</f>", "<f>a</f>b"]),
        (tag(CALL), ['<f>{"x": 1}</f>'], ["<f>{}</f>", '{"x": 1}']),
        (
            {"type": "sequence", "elements": [tag({"type": "any_text"}, "", "</think>"), CALL]},
            ['hm</think>{"x":1}'],
            ['{"x":1}', "hm</think>"],
        ),
        (
            {"type": "tags_with_separator", "tags": [tag(CALL)], "separator": ";", "at_least_one": True},
            ['<f>{"x":1}</f>', '<f>{"x":1}</f>;<f>{"x":2}</f>'],
            ["", '<f>{"x":1}</f>;', '<f>{"x":1}</f><f>{"x":1}</f>'],
        ),
        (
            {"type": "triggered_tags", "triggers": ["<f"], "tags": [tag(CALL), tag({"type": "any_text"}, "<fg>")]},
            ["", "text", 'text <f>{"x":1}</f> text', "<fg>anything</f>", '<f>{"x":1}</f><f>{"x":1}</f>'],
            ["text <f>{}</f>", "<f>", "<fh>", '<f>{"x":1}'],
        ),
        (
            {"type": "triggered_tags", "triggers": ["<f"], "tags": [tag(CALL)], "at_least_one": True,
             "stop_after_first": True},
            ['<f>{"x":1}</f>'],
            ["", 'text<f>{"x":1}</f>', '<f>{"x":1}</f> '],
        ),
        ({"type": "grammar", "grammar": 'start: "a" /[0-9]+/'}, ["a1"], ["a"]),
        (
            {"type": "grammar", "grammar": 'root ::= "a" [0-9]+'},
            ["a1"],
            ["a"],
        ),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_structural_tags(vocabulary: Vocabulary, form: Any, good: list[str], bad: list[str]):
    language = Language(vocabulary, structural_tag={"type": "structural_tag", "format": form})
    for text in good:
        assert text in language, text
    for text in bad:
        assert text not in language, text


def test_the_older_form_of_tags(vocabulary: Vocabulary):
    structure = {"begin": "<f=a>", "schema": {"type": "integer"}, "end": "</f>"}
    language = Language(vocabulary, structural_tag={"structures": [structure], "triggers": ["<f="]})
    assert "some <f=a>12</f> text" in language and "text" in language and "<f=a>x</f>" not in language


def test_a_special_token_in_a_tag_is_that_token(vocabulary: Vocabulary):
    name, token = next((name, i) for name, i in vocabulary.special.items() if i not in vocabulary.eos_ids)
    language = Language(vocabulary, structural_tag={"format": tag({"type": "any_text"}, f"a{name}", name)})
    encode = vocabulary._tokenizer.encode
    letters = [encode(letter, add_special_tokens=False) for letter in ("a", "bc")]
    assert [*letters[0], token, *letters[1], token] in language
    assert [*letters[0], *letters[1], token] not in language


def test_special_tokens_are_never_text(vocabulary: Vocabulary):
    language = Language(vocabulary, regex=r"(.|\n)*")
    assert all([token] not in language for token in vocabulary._specials if token not in vocabulary.eos_ids)


def test_forced_text_may_be_told_in_the_usual_tokens(vocabulary: Vocabulary):
    text = '{"description":'
    schema = {"type": "object", "properties": {"description": {}}, "required": ["description"]}
    language = Language(vocabulary, json={**schema, "additionalProperties": False}, disable_any_whitespace=True)
    matcher = vocabulary.matcher(language.source)
    for token in vocabulary._tokenizer.encode(text, add_special_tokens=False)[:-1]:
        allowed = matcher.compute_bitmask()
        assert allowed[token // 8] >> token % 8 & 1
        assert matcher.consume_token(token)


def test_a_long_text_that_is_forced_costs_no_more(vocabulary: Vocabulary):
    """The tokens of such a text are left to the model: to look for the usual ones would take time in every step."""
    asked = 0

    def tokenize(text: str) -> list[int]:
        nonlocal asked
        asked += 1
        return []

    text = "the quick brown fox " * 1000
    for form in (
        {"json": {"const": text}},
        {"choice": [text]},
        {"regex": "a{20000}"},
        {"grammar": f'%llguidance {{}}\nstart: "{text}"'},
        {"structural_tag": {"format": {"type": "grammar", "grammar": f'start: "{text}"'}}},
    ):
        language = Language(vocabulary, **form)
        matcher = vocabulary.matcher(language.source)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Vocabulary, "__call__", lambda self, text: tokenize(text))
            for _ in range(3):
                mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
                assert matcher.consume_token(int(np.flatnonzero(np.unpackbits(mask, bitorder="little"))[0]))
    assert not asked


def test_a_vocabulary_without_an_end(tmp_path: Path):
    """An answer that may end but need not has no token for it; one that must end is known to."""
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    vocabulary = Vocabulary(load_tokenizer(tmp_path), VOCAB_SIZE)
    matcher = vocabulary.matcher(Language(vocabulary, regex="a{1,2}").source)
    (letter,) = vocabulary._tokenizer.encode("a", add_special_tokens=False)
    mask = np.zeros(vocabulary.words, np.int32)
    for last in (False, True):
        assert matcher.consume_token(letter)
        if not matcher.is_stopped():
            matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        assert vocabulary.ends(matcher, mask) is last
