"""Every family in the whole engine: greedy answers equal transformers', however the work is cut up.

test_parity.py has more of it for a few families, tests/models the logits of every configuration.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.core.config import CacheConfig
from octavo.models.groups import LayerGroups
from octavo.models.spec import ModelSpec
from tests.builders import load_reference, make_model
from tests.engine.test_parity import count_preemptions
from tests.models.cases import CASES

MAX_TOKENS = 8
GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
DONE = {"llama", "mistral", "qwen2", "qwen3"}  # in test_parity.py
# The first case of each family: its windows are shorter than the prompts.
FAMILIES = {family: case for case, (family, _) in reversed(CASES.items()) if family not in DONE}


def prompts() -> list[list[int]]:
    """Of mixed lengths; the last begin alike, for more than two blocks."""
    rng = np.random.default_rng(1)
    shared = rng.integers(3, 500, 40).tolist()
    return [rng.integers(3, 500, length).tolist() for length in (1, 30, 5)] + [
        shared + rng.integers(3, 500, length).tolist() for length in (3, 17)
    ]


def answers(folder: Path) -> list[list[int]]:
    """transformers' own."""
    reference, found = load_reference(folder), []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            answer = reference.generate(ids, max_new_tokens=MAX_TOKENS, do_sample=False, eos_token_id=None)
        found.append(answer[0, len(prompt) :].tolist())
    return found


def check(folder: Path, expected: list[list[int]], warm: bool = True, **config) -> list[int]:
    """Two rounds of all prompts; returns the preemptions of each step."""
    llm = LLM(str(folder), dtype="float32", max_model_len=96, **config)
    preempted = count_preemptions(llm)
    for turn in range(2):
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts()], GREEDY)
        assert [output.outputs[0].token_ids for output in outputs] == expected
        if turn and warm:
            assert [output.num_cached_tokens for output in outputs] == [0, 16, 0, 32, 48]
    llm._core.check_integrity()
    assert llm._core.scheduler.cache.pool.num_held == 0
    return preempted


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers(family: str, tmp_path) -> None:
    folder = make_model(tmp_path, family, **CASES[FAMILIES[family]][1])
    expected = answers(folder)
    # In chunks; the second time from the prefix cache.
    check(folder, expected, num_kv_blocks=64, long_prefill_token_threshold=7)
    # Room for the longest and little more, in each group of layers.
    windows = LayerGroups.of(ModelSpec.from_folder(folder).windows, 96).windows
    pages = CacheConfig(1, 2, 1, 96, windows=windows).pages_for(33) + 12 * len(windows)
    for caching in (False, True):
        small = {"num_kv_blocks": pages, "block_size": 2, "enable_prefix_caching": caching}
        assert sum(check(folder, expected, overlap=True, warm=False, **small)) >= 2
