"""Answers with a form, from a whole engine with a small random model, whose free answers would be noise."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo import LLM, BeamSearchParams, RequestError, SamplingParams, StructuredOutputs
from octavo.scheduler.scheduler import Scheduler
from tests.engine.conftest import Reference

PROMPTS = ["The capital of France is", "Once upon a time", "1 2 3", '{"name": "octavo"']
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "bc", 'd\n"e']}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def make(llama: Reference) -> Callable[..., LLM]:
    """Engines by their configuration, each made once."""
    made: dict[str, LLM] = {}

    def get(**config: Any) -> LLM:
        config = {"num_kv_blocks": 256, "dtype": "float32", **config}
        return made.setdefault(str(config), LLM(str(llama.folder), **config))

    return get


@pytest.fixture(scope="module", params=[False, True], ids=["", "overlap"])
def llm(request: pytest.FixtureRequest, make: Callable[..., LLM]) -> LLM:
    return make(overlap=request.param)


def params(asked: dict[str, Any], **more: Any) -> SamplingParams:
    values: dict[str, Any] = {"temperature": 1.2, "max_tokens": 300, "seed": 1, **more}
    return SamplingParams(structured_outputs=StructuredOutputs(**asked), **values)


def answers(llm: LLM, sampling: SamplingParams | list[SamplingParams], prompts: list[str] = PROMPTS) -> list[Any]:
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    llm._core.check_integrity()
    assert not llm._core.scheduler.rows.masked.any()
    return [answer for output in outputs for answer in output.outputs]


def scalars() -> st.SearchStrategy[Any]:
    bounds = st.tuples(st.integers(-2000, 2000), st.integers(0, 3000))
    integers = bounds.map(lambda b: {"type": "integer", "minimum": b[0], "maximum": b[0] + b[1]})
    lengths = st.tuples(st.integers(0, 3), st.integers(0, 5))
    strings = lengths.map(lambda b: {"type": "string", "minLength": b[0], "maxLength": b[0] + b[1]})
    patterns = st.sampled_from(["^[A-Z]{2}[0-9]$", "^(yes|no)?$", "^é{1,3}.{1,3}$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    )
    values = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=5))
    enums = st.lists(values, min_size=1, max_size=4).map(lambda found: {"enum": found})
    return st.one_of(integers, strings, patterns, enums, values.map(lambda v: {"const": v}), st.just({"type": "null"}))


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    arrays = st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
        lambda a: {"type": "array", "items": a[0], "minItems": a[1], "maxItems": a[1] + a[2]}
    )
    tuples = st.lists(inner, min_size=1, max_size=3).map(
        lambda found: {"type": "array", "prefixItems": found, "items": False, "minItems": len(found)}
    )
    names = st.text(min_size=1, max_size=6)
    objects = st.tuples(st.dictionaries(names, inner, max_size=4), st.integers(0, 4)).map(
        lambda o: {
            "type": "object",
            "properties": o[0],
            "required": sorted(o[0])[: o[1]],
            "additionalProperties": False,
        }
    )
    return st.one_of(arrays, tuples, objects, st.lists(inner, min_size=1, max_size=3).map(lambda f: {"anyOf": f}))


def holds(schema: Any, text: str) -> None:
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.recursive(scalars(), containers, max_leaves=8), min_size=12, max_size=12))
def test_every_answer_validates(llm: LLM, schemas: list[Any]):
    compact = {"disable_any_whitespace": True}
    each = [params({"json": schema, **compact}, seed=i, max_tokens=440) for i, schema in enumerate(schemas)]
    for schema, answer in zip(schemas, answers(llm, each, PROMPTS * 3), strict=True):
        assert answer.finish_reason == "stop", answer.text
        holds(schema, answer.text)


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"regex": "[0-9]{3}-(ab|é)+!"}, "[0-9]{3}-(ab|é)+!"),
        ({"regex": "^yes|no$"}, "yes|no"),
        ({"choice": ["red", 'gr"een', "日本\n"]}, 'red|gr"een|日本\n'),
        ({"grammar": 'root ::= "a" [0-9]{2,4} tail\ntail ::= ";" | "!"'}, "a[0-9]{2,4}[;!]"),
        ({"grammar": 'start: "<" /[a-c]{2}/ ">"'}, "<[a-c]{2}>"),
    ],
    ids=["regex", "anchors", "choice", "gbnf", "lark"],
)
def test_kinds(llm: LLM, asked: dict[str, Any], pattern: str):
    for answer in answers(llm, params(asked)):
        assert answer.finish_reason == "stop" and re.fullmatch(pattern, answer.text), answer.text


def test_json_object(llm: LLM):
    for answer in answers(llm, params({"json_object": True})):
        if answer.finish_reason == "stop":
            assert isinstance(json.loads(answer.text), dict)
        else:
            assert answer.text.startswith("{")


def test_structural_tags(llm: LLM):
    schema = {"type": "object", "properties": {"x": {"type": "integer", "maximum": 9}}, "required": ["x"]}
    schema["additionalProperties"] = False
    tag = {"begin": "<f=", "content": {"type": "json_schema", "json_schema": schema}, "end": "</f>"}
    calls = {"type": "tags_with_separator", "tags": [tag], "separator": "\n", "at_least_one": True}
    free = {"type": "triggered_tags", "triggers": ["<f"], "tags": [tag], "at_least_one": True}
    for form in (calls, {**free, "stop_after_first": True}):
        for answer in answers(llm, params({"structural_tag": {"format": form}, "disable_any_whitespace": True})):
            whole = re.fullmatch(r'(<f=\{"x":-?[0-9]+\}</f>\n?)+', answer.text)
            assert whole if answer.finish_reason == "stop" else answer.text.startswith("<f={"), answer.text
    old = {"structures": [{"begin": "<f=", "schema": schema, "end": "</f>"}], "triggers": ["<f="]}
    for answer in answers(llm, params({"structural_tag": old}, max_tokens=60)):
        for call in re.findall("<f=(.*?)</f>", answer.text, re.DOTALL):
            holds(schema, call)


def test_every_parameter_goes_with_it(llm: LLM):
    more: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"top_k": 5, "top_p": 0.9, "min_p": 0.01},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5},
        {"logit_bias": {"5": 50.0, "300": -100.0}, "bad_words": ['"name"']},
        {"ignore_eos": True},
        {"min_tokens": 200},
        {"logprobs": 3, "prompt_logprobs": 1},
        {"n": 4, "temperature": 2.0},
    ]
    each = [params({"json": PERSON}, **values) for values in more]
    found = llm.generate([PROMPTS[0]] * len(more), each, use_tqdm=False)
    for output in found:
        for answer in output.outputs:
            assert answer.finish_reason == "stop", answer.text
            holds(PERSON, answer.text)
    assert len({answer.text for answer in found[-1].outputs}) > 1
    for answer in found[6].outputs:
        assert answer.logprobs is not None and len(answer.logprobs) == len(answer.token_ids)
        # They are the model's own: the mask does not show in them.
        assert all(len(row) >= 3 for row in answer.logprobs)
        assert any(max(row.values(), key=lambda p: p.logprob).rank == 1 for row in answer.logprobs)


def test_stop_strings_end_it_early(llm: LLM):
    (answer,) = answers(llm, params({"json": PERSON}, stop=['"age']), PROMPTS[:1])
    assert (answer.finish_reason, answer.stop_reason) == ("stop", '"age')
    assert answer.text.lstrip("{ \n\t\r").startswith('"name"')


def test_where_eos_may_follow(llm: LLM):
    """A number may go on or end: EOS is a choice of the model there, unless it is told to go on."""
    for answer in answers(llm, params({"regex": "[0-9]{2,6}"})):
        assert answer.finish_reason == "stop" and re.fullmatch("[0-9]{2,6}", answer.text)
    for more in ({"ignore_eos": True}, {"min_tokens": 290}):
        for answer in answers(llm, params({"regex": "[0-9]{2,6}"}, **more)):
            assert answer.finish_reason == "stop" and re.fullmatch("[0-9]{6}", answer.text)


def test_allowed_tokens_narrow_it(llm: LLM):
    digits = [llm.get_tokenizer().token_to_id(digit) for digit in "123"]
    for answer in answers(llm, params({"regex": "[0-9]{4}"}, allowed_token_ids=digits)):
        assert re.fullmatch("[123]{4}", answer.text)
    (answer,) = answers(llm, params({"regex": "[a-z]{4}"}, allowed_token_ids=digits), PROMPTS[:1])
    assert answer.finish_reason == "error"


def test_neighbours_without_a_grammar_are_left_alone(llm: LLM):
    plain = SamplingParams(temperature=1.0, seed=3, max_tokens=40, ignore_eos=True)
    alone = [answer.token_ids for answer in answers(llm, plain)]
    mixed = [plain if i % 2 else params({"json": PERSON}, seed=i) for i in range(8)]
    for _ in range(2):  # the rows change hands
        found = answers(llm, mixed, [p for p in PROMPTS for _ in range(2)])
        assert [answer.token_ids for answer in found[1::2]] == alone
        for answer in found[::2]:
            holds(PERSON, answer.text)


def test_preemption_changes_nothing(make: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch):
    count = 0
    put_back = Scheduler.put_back

    def counted(self: Scheduler, row: int) -> None:
        nonlocal count
        count += int(self.rows.masked[row])
        put_back(self, row)

    monkeypatch.setattr(Scheduler, "put_back", counted)
    each = [params({"json": PERSON, "disable_any_whitespace": True}, seed=i, n=2) for i in range(8)]
    expected = [answer.token_ids for answer in answers(make(overlap=False), each, PROMPTS * 2)]
    assert count == 0
    for overlap in (False, True):
        tight = make(overlap=overlap, num_kv_blocks=20, block_size=4, max_model_len=80)
        short = [one.clone(max_tokens=60) for one in each]
        assert [answer.token_ids for answer in answers(tight, short, PROMPTS * 2)] == [ids[:60] for ids in expected]
    assert count > 0


def test_aborted_midway(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    steps = iter(range(12))
    step = llm._core.step

    def interrupted() -> Any:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(llm._core, "step", interrupted)
        answers(llm, params({"json": PERSON}, n=3))
    for answer in answers(llm, params({"choice": ["yes", "no"]})):
        assert answer.text in ("yes", "no")


def test_the_matcher_may_die(make: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch):
    """Answers with a grammar end with an error, others go on, and the next one starts it again."""
    llm = make(overlap=False)
    answers(llm, params({"choice": ["yes", "no"]}))
    grammars = llm._core.scheduler.grammars
    assert grammars is not None and grammars._child is not None
    steps = iter(range(10))
    step = llm._core.step

    def killing() -> Any:
        if next(steps, -1) == 9:
            assert grammars is not None and grammars._child is not None
            grammars._child._process.kill()
        return step()

    plain = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
    with monkeypatch.context() as patch:
        patch.setattr(llm._core, "step", killing)
        found = answers(llm, [params({"regex": "[a-z]{200}"}), plain, params({"regex": "[0-9]{200}"}), plain])
    assert [answer.finish_reason for answer in found] == ["error", "length", "error", "length"]
    for answer in answers(llm, params({"choice": ["yes", "no"]})):
        assert answer.text in ("yes", "no")


def test_refused(make: Callable[..., LLM]):
    llm = make(overlap=False)
    for asked, param in (
        ({"json": {"properties": {"x": {"unevaluatedProperties": False}}}}, "properties.x.unevaluatedProperties"),
        ({"json": {"anyOf": [{}, {"type": "foo"}]}}, "anyOf[1].type"),
        ({"regex": "("}, ""),
        ({"grammar": "start: nobody"}, ""),
    ):
        (kind,) = asked
        with pytest.raises(RequestError) as caught:
            answers(llm, params(asked))
        assert caught.value.param == f"structured_outputs.{kind}.{param}".strip(".")
    with pytest.raises(RequestError, match="beam search"):
        BeamSearchParams(beam_width=2, max_tokens=4, structured_outputs=StructuredOutputs(regex="a"))  # type: ignore[arg-type]


def test_full_and_complete_is_complete(llm: LLM):
    text = "yes indeed"
    long = params({"choice": [text]}, temperature=0.0, max_tokens=100)
    (answer,) = answers(llm, long, PROMPTS[:1])
    assert (answer.text, answer.finish_reason) == (text, "stop")
    count = len(answer.token_ids)
    for most, reason in ((count, "stop"), (count - 1, "length")):
        (answer,) = answers(llm, long.clone(max_tokens=most), PROMPTS[:1])
        assert (len(answer.token_ids), answer.finish_reason) == (most, reason)
