"""Every family against transformers: the same weights give the same logits, however the work is cut up."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo import kernels
from octavo.core.errors import ModelError
from octavo.kernels import elementwise
from octavo.models.loader import SINGLE, load_model
from tests.builders import VOCAB_SIZE, edit_config, load_reference, make_model
from tests.models.cases import CASES, FUSED, HALVES, OLD_CONFIGS
from tests.oracle_attention import OracleAttention, PagedSession

LONG = 40  # tokens of the longest prompt: more than two windows of 16


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(0, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def expected(reference, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return reference(torch.tensor([tokens])).logits[0]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("case", CASES)
def test_same_logits_as_transformers(case: str, tmp_path) -> None:
    family, overrides = CASES[case]
    folder = make_model(tmp_path, family, **overrides)
    reference = load_reference(folder)
    # Where a scaling depends on the length, ours is chosen once: by 40, as for the prompt in transformers.
    model = load_model(folder, max_model_len=LONG)
    tokens = prompt(LONG, 1)
    theirs = expected(reference, tokens)

    (whole,) = PagedSession(model).step([("a", tokens)])
    close(whole, theirs)

    chunked = PagedSession(model)
    pieces = [tokens[0:7], tokens[7:8], tokens[8:29], tokens[29:30], tokens[30:40]]
    close(torch.cat([chunked.step([("a", piece)])[0] for piece in pieces]), theirs)


class OpenOracle(OracleAttention):
    """Lets a kernel fill its cache."""

    def cache(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(cache[layer].view(-1, self.block_size, *cache.shape[2:]) for cache in (self.keys, self.values))


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels on the CPU need Triton's interpreter")
@pytest.mark.parametrize("case", FUSED)
def test_fused_kernels_give_the_same(case: str, tmp_path, monkeypatch) -> None:
    """What runs on a GPU between matrix products, in Triton's interpreter."""
    family, overrides = CASES[case]
    folder = make_model(tmp_path, family, **overrides)
    tokens = prompt(5, 1)
    (wanted,) = PagedSession(load_model(folder, max_model_len=LONG)).step([("a", tokens)])
    monkeypatch.setattr(kernels, "elementwise_for", lambda device: elementwise)
    session = PagedSession(load_model(folder, max_model_len=LONG), OpenOracle)
    monkeypatch.setattr(OpenOracle, "write", None)  # not called
    chunks = [session.step([("a", piece)])[0] for piece in (tokens[:3], tokens[3:4], tokens[4:])]
    torch.testing.assert_close(torch.cat(chunks), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["llama", "mistral-window", "qwen2-window-after", "qwen3-window"])
def test_batches_mix_prompts_and_single_tokens(case: str, tmp_path) -> None:
    family, overrides = CASES[case]
    folder = make_model(tmp_path, family, **overrides)
    reference = load_reference(folder)
    session = PagedSession(load_model(folder))
    a, b, c = prompt(30, 1), prompt(9, 2), prompt(21, 3)
    got = {name: [] for name in "abc"}
    steps = [{"a": 18}, {"a": 1, "b": 5}, {"a": 1, "b": 1, "c": 20}] + [{"a": 1, "b": 1, "c": 1}] + [{"a": 1}] * 3
    tokens = {"a": a, "b": b, "c": c}
    done = dict.fromkeys(tokens, 0)
    for step in steps:
        parts = [(name, tokens[name][done[name] : done[name] + count]) for name, count in step.items()]
        for (name, ids), logits in zip(parts, session.step(parts), strict=True):
            got[name].append(logits)
            done[name] += len(ids)
    for name, rows in got.items():
        close(torch.cat(rows), expected(reference, tokens[name][: done[name]]))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_greedy_generation_is_that_of_transformers(family: str, tmp_path) -> None:
    folder = make_model(tmp_path, family)
    tokens = prompt(11, 4)
    with torch.inference_mode():
        theirs = load_reference(folder).generate(
            torch.tensor([tokens]), max_new_tokens=16, do_sample=False, eos_token_id=None
        )[0, 11:]
    session = PagedSession(load_model(folder))
    answer = [int(session.step([("a", tokens)])[0][-1].argmax())]
    while len(answer) < 16:
        answer.append(int(session.step([("a", answer[-1:])])[0][0].argmax()))
    assert answer == theirs.tolist()


@pytest.mark.parametrize("family", HALVES)
def test_half_precision_stays_close(family: str, tmp_path) -> None:
    folder = make_model(tmp_path, family, dtype=torch.bfloat16, initializer_range=0.05)
    tokens = prompt(LONG, 5)
    reference = load_reference(folder)
    assert reference.dtype == torch.bfloat16
    model = load_model(folder, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    exact = expected(reference.float(), tokens)
    (ours,) = PagedSession(model).step([("a", tokens)])
    theirs = expected(load_reference(folder), tokens).float()
    # No further from the exact answer than transformers is in the same type, within chance.
    assert (ours - exact).pow(2).mean() < 1.5 * (theirs - exact).pow(2).mean()


@pytest.mark.parametrize("case", OLD_CONFIGS)
def test_configs_as_the_hub_has_them(case: str, tmp_path) -> None:
    """Keys that transformers once wrote, and keys left out that it now writes."""
    family, overrides, drop, changes = OLD_CONFIGS[case]
    folder = make_model(tmp_path, family, **overrides)
    tokens = prompt(20, 6)
    theirs = expected(load_reference(folder), tokens)
    edit_config(folder, drop=drop, **changes)
    (ours,) = PagedSession(load_model(folder, max_model_len=LONG)).step([("a", tokens)])
    close(ours, theirs)


def test_gpt2_as_the_hub_has_it(tmp_path) -> None:
    """Names without the prefix that all share, and with the causal mask."""
    folder = make_model(tmp_path, "gpt2")
    theirs = expected(load_reference(folder), prompt(8, 6))
    tensors = load_file(folder / SINGLE)
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old |= {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    save_file(old, folder / SINGLE)
    (ours,) = PagedSession(load_model(folder)).step([("a", prompt(8, 6))])
    close(ours, theirs)


def test_a_text_part_by_the_names_of_today(tmp_path) -> None:
    """As transformers 5 calls them while they run; only the other side's tensors are passed over."""
    folder = make_model(tmp_path, "mistral3_whole")
    theirs = expected(load_reference(folder), prompt(8, 6))
    tensors = load_file(folder / SINGLE)
    assert "language_model.model.norm.weight" in tensors
    new = {
        name.replace("language_model.lm_head", "lm_head").replace("language_model.model.", "model.language_model."): t
        for name, t in tensors.items()
    }
    save_file(new, folder / SINGLE)
    (ours,) = PagedSession(load_model(folder)).step([("a", prompt(8, 6))])
    close(ours, theirs)
    save_file(new | {"model.other.weight": torch.ones(4)}, folder / SINGLE)
    with pytest.raises(ModelError, match="has no place"):
        load_model(folder)


@pytest.mark.parametrize("case", ["deepseek_v3", "glm4_moe"])
def test_layers_that_draft_are_left_out(case: str, tmp_path) -> None:
    """Published checkpoints have them behind the last; only what lies there is ignored."""
    folder = make_model(tmp_path, CASES[case][0], **CASES[case][1])
    tensors = load_file(folder / SINGLE)
    save_file(tensors | {"model.layers.2.eh_proj.weight": torch.ones(4, 8)}, folder / SINGLE)
    load_model(folder)
    save_file(tensors | {"model.layers.1.eh_proj.weight": torch.ones(4, 8)}, folder / SINGLE)
    with pytest.raises(ModelError, match="has no place"):
        load_model(folder)


def test_dynamic_scaling_beyond_the_models_context_is_that_of_one_long_prompt(tmp_path) -> None:
    folder = make_model(
        tmp_path, "llama", max_position_embeddings=16, rope_parameters={"rope_type": "dynamic", "factor": 2.0}
    )
    reference = load_reference(folder)
    (long,) = PagedSession(load_model(folder, max_model_len=LONG)).step([("a", prompt(LONG, 7))])
    close(long, expected(reference, prompt(LONG, 7)))
    (short,) = PagedSession(load_model(folder)).step([("a", prompt(16, 7))])
    close(short, expected(load_reference(folder), prompt(16, 7)))
