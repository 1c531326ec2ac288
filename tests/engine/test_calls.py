"""Calls that are required are made, even by a model that knows nothing."""

from __future__ import annotations

import json

import pytest

from octavo import LLM, SamplingParams, StructuredOutputs
from octavo.text.parsing.base import Demand, Parsed, Thinking
from octavo.text.parsing.formats import CALLS_BY_NAME
from tests.engine.conftest import Reference

PAINT = {
    "name": "paint",
    "parameters": {
        "type": "object",
        "properties": {"color": {"enum": ["red", "green"]}, "dry": {"type": "boolean"}},
        "required": ["color", "dry"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def llm(llama: Reference) -> LLM:
    return LLM(str(llama.folder), num_kv_blocks=256, dtype="float32")


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "llama3_json", "json", "glm45", "pythonic", "deepseek_v32"])
def test_required_calls(llm: LLM, name: str) -> None:
    parsers = [CALLS_BY_NAME[name]([PAINT]) for _ in range(4)]
    form = parsers[0].form(Demand(required=True, parallel=False, template=""))
    asked = StructuredOutputs(structural_tag={"type": "structural_tag", "format": form})
    params = SamplingParams(max_tokens=480, seed=1, n=4, structured_outputs=asked)
    for parser, answer in zip(parsers, llm.generate("Paint it!", params)[0].outputs, strict=True):
        parsed = Parsed()
        for delta in parser.feed(answer.text) + parser.finish():
            parsed.add(delta)
        assert answer.finish_reason == "stop" and not parsed.content
        assert [call.name for call in parsed.calls] == ["paint"]
        given = json.loads(parsed.calls[0].arguments)
        assert given["color"] in ("red", "green") and isinstance(given["dry"], bool)


def test_required_calls_behind_reasoning_with_a_budget(llm: LLM) -> None:
    """The token that ends the reasoning is set by the scheduler, and the grammar follows it."""
    tokenizer = llm.get_tokenizer()
    begin, end = (tokenizer.encode(text, add_special_tokens=False)[0] for text in ("Q", "Z"))
    thinking = Thinking("Q", "Z")
    assert [tokenizer.id_to_token(begin), tokenizer.id_to_token(end)] == ["Q", "Z"]
    for stream in (False, True):
        parser = CALLS_BY_NAME["hermes"]([PAINT], thinking, "Q")
        form = parser.form(Demand(required=True, parallel=False, template=""))
        params = SamplingParams(
            max_tokens=480,
            seed=2,
            structured_outputs=StructuredOutputs(structural_tag={"type": "structural_tag", "format": form}),
            thinking_token_budget=6,
            thinking_marks=["Q", "Z"],
            stop=["never"] if stream else None,  # its tokens come one by one
        )
        answer = llm.generate({"prompt_token_ids": [5, 6, begin]}, params)[0].outputs[0]
        parsed = Parsed()
        for delta in parser.feed(answer.text) + parser.finish():
            parsed.add(delta)
        assert answer.token_ids.index(end) == 6 and parsed.reasoning
        assert [call.name for call in parsed.calls] == ["paint"] and answer.finish_reason == "stop"
