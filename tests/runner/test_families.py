"""Families whose layers differ most, through all that a GPU runs: fused kernels, Triton attention, decode graphs."""

from __future__ import annotations

import pytest
import torch

from tests.builders import make_model
from tests.engine.test_families import GREEDY, answers, prompts
from tests.models.cases import CASES
from tests.runner.test_graphs import start, unrecorded  # noqa: F401 (a fixture)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs real graphs")]


WHOLE = ["gemma2", "gemma3", "olmo2", "glm4", "cohere2", "gpt2", "starcoder2", "smollm3", "qwen3_moe", "gpt_oss"]
WHOLE += ["bloom", "falcon-40b", "hunyuan_v1_dense", "llama4", "afmoe", "ministral3"]


@pytest.mark.parametrize("case", WHOLE)
def test_greedy_answers(case: str, tmp_path, unrecorded) -> None:  # noqa: F811
    family, overrides = CASES[case]
    folder = make_model(tmp_path, family, **overrides)
    llm = start(folder, 64, block_size=4)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts()], GREEDY)
    assert [output.outputs[0].token_ids for output in outputs] == answers(folder)
    assert unrecorded[0] > 3
