"""Answers with a form on an NVIDIA GPU: run with scripts/test-gpu."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from octavo import LLM, SamplingParams, StructuredOutputs
from tests.builders import make_model

pytestmark = pytest.mark.gpu

PROMPTS = ["The capital of France is", "Once upon a time", "1 2 3", '{"name": "octavo"']
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "bc"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "config", [{}, {"enforce_eager": True}, {"overlap": False}], ids=["graphs", "eager", "in turn"]
)
def test_every_answer_validates(tmp_path, config):
    llm = LLM(str(make_model(tmp_path, "llama")), dtype="float32", num_kv_blocks=512, **config)
    form, plain = StructuredOutputs(json=SCHEMA, disable_any_whitespace=True), SamplingParams(seed=1, max_tokens=30)
    alone = [output.outputs[0].token_ids for output in llm.generate(PROMPTS, plain)]
    each = [
        SamplingParams(structured_outputs=form, max_tokens=200, seed=i, n=2, **more)
        for i, more in enumerate(
            (
                {"temperature": 0.0},
                {"temperature": 1.5},
                {"temperature": 1.5, "top_k": 20, "top_p": 0.9},
                {"temperature": 1.5, "repetition_penalty": 1.2, "logit_bias": {5: 10.0}, "logprobs": 2},
            )
        )
    ]
    for _ in range(2):  # the rows change hands
        found = llm.generate([*PROMPTS, *PROMPTS], [*each, *[plain] * 4])
        for output in found[:4]:
            for answer in output.outputs:
                assert answer.finish_reason == "stop", answer.text
                jsonschema.validate(json.loads(answer.text), SCHEMA)
        assert [output.outputs[0].token_ids for output in found[4:]] == alone
    llm._core.check_integrity()


def test_the_same_as_on_the_cpu(tmp_path):
    folder = make_model(tmp_path, "llama")
    params = SamplingParams(
        temperature=0.0, max_tokens=60, structured_outputs=StructuredOutputs(regex="([a-z]{2,5} ){3}[0-9]{2}")
    )
    found = {}
    for device in ("cpu", "cuda"):
        llm = LLM(str(folder), dtype="float32", device=device, num_kv_blocks=256)
        found[device] = [output.outputs[0].text for output in llm.generate(PROMPTS, params)]
    assert found["cpu"] == found["cuda"]
    assert all(re.fullmatch("([a-z]{2,5} ){3}[0-9]{2}", text) for text in found["cuda"])
