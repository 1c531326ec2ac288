"""Small models of every family with what transformers makes of them, computed once in a session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.builders import load_reference, make_model

# A window shorter than the sequences, so that it matters.
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
}
MAX_TOKENS = 12


@dataclass
class Reference:
    """A model's folder, prompts of mixed lengths, and transformers' greedy answers with all logprobs."""

    family: str
    folder: Path
    prompts: list[list[int]]
    answers: list[list[int]]
    logprobs: list[torch.Tensor]  # [prompt + answer - 1, V]: of the token after each position


def make_reference(family: str, folder: Path) -> Reference:
    path = make_model(folder, family, **FAMILIES[family])
    model = load_reference(path)
    rng = np.random.default_rng(1)
    shared = rng.integers(3, 500, 40).tolist()  # several prompts begin alike
    prompts = []
    for i, length in enumerate(rng.integers(1, 90, 32).tolist()):
        tail = rng.integers(3, 500, length).tolist()
        prompts.append((shared + tail)[:length] if i % 3 == 0 else tail)
    answers, logprobs = [], []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(MAX_TOKENS):
                ids = torch.cat((ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)), 1)
            full = model(ids).logits[0, :-1].float().log_softmax(-1)
        answers.append(ids[0, len(prompt) :].tolist())
        logprobs.append(full)
    return Reference(family, path, prompts, answers, logprobs)


@pytest.fixture(scope="session", params=FAMILIES)
def reference(request, tmp_path_factory) -> Reference:
    return make_reference(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Reference:
    return make_reference("llama", tmp_path_factory.mktemp("llama-alone"))
