"""Every family on an NVIDIA GPU: greedy answers equal transformers' on the CPU. Run with scripts/test-gpu."""

from __future__ import annotations

import pytest
from transformers import GptOssConfig

from tests.builders import make_model
from tests.engine.test_families import FAMILIES, answers, check
from tests.models.cases import CASES

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers(family: str, tmp_path) -> None:
    """In CUDA graphs and without, in chunks, from the prefix cache; windows are shorter than the prompts."""
    options = dict(CASES[FAMILIES[family]][1])
    if not hasattr(GptOssConfig(), "swiglu_limit"):  # transformers < 5.2 has a fixed limit, whatever the config says
        options.pop("swiglu_limit", None)
    folder = make_model(tmp_path, family, **options)
    expected = answers(folder)
    check(folder, expected, num_kv_blocks=64)
    check(folder, expected, num_kv_blocks=64, long_prefill_token_threshold=7, enforce_eager=True)
