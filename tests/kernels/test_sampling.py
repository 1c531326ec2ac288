"""The sampling kernels against the sampler's torch code: the same tokens from the same logits."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from octavo.core.params import SamplingParams
from octavo.kernels import sampling, sampling_logprobs
from octavo.kernels.sampling_parts import exponential, later, sortable, stream_of
from octavo.sampling import fused, random
from octavo.sampling.sampler import Sampler
from octavo.sampling.state import Int, Mode, Real
from tests.sampling.reference import NOTHING, join

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
V = 1100  # the last block of 256 and the last group of 16 are not full
PLAIN: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.6},
    {"top_p": 0.8},
    {"top_p": 0.05, "temperature": 2.0},
    {"min_p": 0.05},
    {"min_p": 0.02, "top_p": 0.6, "temperature": 1.5},
    {"top_k": 20},
    {"top_k": 7, "top_p": 0.7, "min_p": 0.01, "temperature": 1.5},
    {"top_k": 600, "top_p": 0.9, "temperature": 3.0},
    {"top_k": 1},
]
EDITS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.4, "frequency_penalty": 0.5, "presence_penalty": 0.25},
    {"allowed_token_ids": list(range(0, V, 3))},
    {"logit_bias": {3: 5.0, 700: -5.0, 1099: 6.5}, "min_tokens": 4},
]


def logits(rows: int, seed: int = 0, dtype: torch.dtype = torch.float32, vocab: int = V) -> torch.Tensor:
    return (torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3).to(DEVICE, dtype)


def samplers(asked: list[dict[str, Any]], vocab: int = V) -> tuple[Sampler, Sampler]:
    """With the kernels, and without."""
    found = []
    for kernels in (True, False):
        sampler = Sampler(len(asked), vocab, DEVICE)
        sampler.fused = fused.Fused(vocab, sampler.table) if kernels else None
        for row, params in enumerate(asked):
            sampler.join(join(row, SamplingParams(**params), prompt=[row, 5, row], seed=row, stop_ids=[1, 2]))
        found.append(sampler)
    return found[0], found[1]


def tokens(sampler: Sampler, x: torch.Tensor, position: int, rows: list[int] | None = None) -> list[int]:
    host = np.arange(len(x), dtype=np.int32) if rows is None else np.array(rows, np.int32)
    rows_S = torch.from_numpy(host.astype(np.int64)).to(DEVICE)
    positions_S = torch.full((len(x),), position, device=DEVICE)
    found: list[int] = sampler.sample(x, rows_S, positions_S, host, NOTHING, False).tokens_S.tolist()
    return found


def check(asked: list[dict[str, Any]], dtype: torch.dtype, turns: int = 2, vocab: int = V) -> list[int]:
    ours, torch_s = samplers(asked, vocab)
    for turn in range(turns):
        x = logits(len(asked), turn, dtype, vocab)
        found = tokens(ours, x, 3 + turn)
        assert found == tokens(torch_s, x, 3 + turn)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_any_mix_of_rows(dtype):
    check(PLAIN, dtype, turns=1)


@pytest.mark.parametrize("vocab", [3, 40, 256, 2500])
def test_any_vocabulary(vocab):
    check(PLAIN, torch.float32, turns=1, vocab=vocab)


def test_groups_of_more_tokens_in_a_large_vocabulary(monkeypatch):
    monkeypatch.setattr(sampling, "MOST_GROUPS", 32)
    check(PLAIN[6:9], torch.float16)


def test_features_that_change_logits():
    asked = [plain | edits for edits in EDITS for plain in (PLAIN[0], PLAIN[2])]
    asked += [EDITS[0] | EDITS[1] | EDITS[2], PLAIN[7] | EDITS[0] | EDITS[2], PLAIN[0]]
    check(asked, torch.float32, turns=3)


def test_counts_of_penalties_are_kept_up_to_date():
    ours, _ = samplers([EDITS[0] | {"temperature": 5.0}])
    said = [tokens(ours, logits(1, turn), 3 + turn)[0] for turn in range(5)]
    said += [tokens(ours, torch.where(torch.arange(V) == said[0], 50.0, 0.0)[None].to(DEVICE), 8)[0]]
    wanted = 2 * np.bincount(said, minlength=V)
    wanted[[0, 5]] += 1
    assert ours.fused is not None
    assert ours.fused._owned[0][0].tolist() == wanted.tolist()


def test_a_row_that_is_taken_over_keeps_nothing():
    ours, torch_s = samplers([plain | EDITS[i % 3] for i, plain in enumerate(PLAIN[:6])])
    for row in range(6):
        for sampler in (ours, torch_s):
            sampler.join(join(row, SamplingParams(**PLAIN[5 - row]), seed=row))
    assert ours.graph_mode(np.arange(6), NOTHING, False) == fused.SAMPLED
    x = logits(6)
    assert tokens(ours, x, 1) == tokens(torch_s, x, 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_gives_no_token(bad):
    asked = [PLAIN[i] for i in (0, 1, 2, 6)] + [PLAIN[0] | EDITS[1] | EDITS[0], PLAIN[2] | EDITS[2]]
    ours, _ = samplers(asked * 3)
    x = logits(18)
    fine = tokens(ours, x, 9)[:6]
    ours, _ = samplers(asked * 3)
    x[6:12, 1] = bad  # a token that allowed_token_ids and min_tokens forbid
    x[12:] = -torch.inf
    assert tokens(ours, x, 9) == fine + [-1] * 12


def test_ties_go_to_the_lowest_id():
    ours, _ = samplers([PLAIN[0], PLAIN[0], PLAIN[0]])
    x = torch.full((3, V), -1.0, device=DEVICE)
    x[0, [900, 300, 301]] = 2.0
    x[1, 700], x[1, 800] = -0.0, 0.0
    assert tokens(ours, x, 1) == [300, 700, 0]


def test_tokens_as_likely_as_the_kth_are_kept():
    ours, _ = samplers([{"top_k": 2, "temperature": 9.0}] * 12)
    x = torch.full((12, V), -9.0, device=DEVICE)
    x[:, 40], x[:, 50:53] = 1.0, 0.5
    assert set(tokens(ours, x, 1)) == {40, 50, 51, 52}


def test_modes_of_captured_batches():
    asked = [PLAIN[0], PLAIN[1], PLAIN[6], PLAIN[0] | EDITS[0], {"logprobs": 1}]
    ours, torch_s = samplers(asked)
    modes = [ours.graph_mode(np.array([row]), NOTHING, False) for row in range(6)]  # the last row is the spare
    assert modes == [0, 1, 3, 4, None, 0]
    assert ours.graph_mode(np.array([0, 2, 3]), NOTHING, False) == 7
    assert ours.graph_mode(np.array([0]), (np.zeros(1, np.int32), np.ones(1, np.int32)), False) is None
    assert torch_s.graph_mode(np.array([0]), NOTHING, False) is None
    x = logits(3)
    rows = torch.tensor([1, 5, 5], device=DEVICE)
    found = ours.sample_static(1, x, rows, torch.tensor([4, 0, 0], device=DEVICE)).tolist()
    assert found == [tokens(torch_s, x[:1], 4, [1])[0], *x[1:].argmax(-1).tolist()]


WRONG = [
    (Real.TEMPERATURE, 2.0), (Real.TOP_P, 0.1), (Real.MIN_P, 0.9),
    (Int.KEY, 1), (Int.TOP_K, 1), (Int.COUNTS, 0), (Int.LIST_LENGTH, 0),
]  # fmt: skip


@pytest.mark.parametrize(("column", "value"), WRONG, ids=[repr(column) for column, _ in WRONG])
def test_a_wrong_number_is_seen(column, value):
    asked = [PLAIN[6 if column is Int.TOP_K else 5], PLAIN[0] | EDITS[0], PLAIN[0] | EDITS[2]]
    ours, torch_s = samplers(asked)
    table = ours.table.reals if isinstance(column, Real) else ours.table.ints
    table[:, column] = value
    ours.table._changed.update(range(3))

    def seen(turn: int) -> bool:
        x = logits(3, turn)
        x[1, 5], x[2, 1099] = 12.0, 7.0  # a token of the prompt, likely until it is penalised, and one with a bias
        return tokens(ours, x, 3 + turn) != tokens(torch_s, x, 3 + turn)

    assert any(seen(turn) for turn in range(8))


def scan(x: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `scan` leaves for the one row 0, of the mode that reads masses and of the one that reads groups."""
    reals, ints = torch.zeros(2, len(Real), device=DEVICE), torch.zeros(2, len(Int), dtype=torch.int64, device=DEVICE)
    reals[:, Real.TEMPERATURE] = temperature
    ints[:, Int.MODE] = torch.tensor([int(Mode.ALL), int(Mode.TOP_K)])
    maxima, masses = torch.zeros(2, 5, device=DEVICE), torch.zeros(2, 5, device=DEVICE)
    groups = torch.zeros(2, 69, dtype=torch.int32, device=DEVICE)
    zeros = torch.arange(2, device=DEVICE)
    sampling.scan_kernel[(3, 2)](
        x.expand(2, V), 0, zeros, zeros, reals, ints, maxima, masses, groups, 0.0,
        V=V, SAMPLED=True, HAS_TOP_K=True, EDITED=False, SHIFT=0, GROUP=16, TILE=2,
    )  # fmt: skip
    return maxima, masses[0], groups[1]


def check_scan(spoil=lambda x: None) -> None:
    x = logits(1)
    x[0, 512:768] = -torch.inf
    padded = torch.nn.functional.pad(x[0], (0, 1280 - V), value=-torch.inf)
    blocks = padded.view(5, 256)
    most = blocks.amax(-1)
    masses = ((blocks - most.clamp(min=-1e30)[:, None]) / 0.5).exp().sum(-1)
    groups = padded[: 69 * 16].view(69, 16).amax(-1)
    spoil(x)
    found_maxima, found_masses, found_groups = scan(x, 0.5)
    assert torch.equal(found_maxima, most.expand(2, 5))
    torch.testing.assert_close(found_masses, masses)
    assert torch.equal(found_groups.argsort(stable=True), groups.argsort(stable=True))


def test_scan():
    check_scan()


@pytest.mark.parametrize("at", [0, 300, V - 1])
def test_a_wrong_logit_is_seen(at):
    with pytest.raises(AssertionError):
        check_scan(lambda x: x[0, at].add_(20))


@triton.jit(do_not_specialize=["position", "turn"])
def noise_kernel(keys_ptr, out_ptr, order_ptr, values_ptr, position, turn, N: tl.constexpr):
    i = tl.arange(0, N)
    stream = later(stream_of(tl.load(keys_ptr), position.to(tl.int64)), turn)
    tl.store(out_ptr + i, exponential(stream, i))
    tl.store(order_ptr + i, sortable(tl.load(values_ptr + i), 0))


def test_random_numbers_are_those_of_torch():
    values = logits(1, 3, vocab=4096)[0]
    values[:4] = torch.tensor([-torch.inf, torch.inf, -0.0, 0.0])
    for key, position, turn in ((-5, 1, 0), (2**62 + 12345, 130_000, 3)):
        keys = torch.tensor([key], device=DEVICE)
        found = torch.empty(4096, device=DEVICE)
        order = torch.empty(4096, dtype=torch.int32, device=DEVICE)
        noise_kernel[(1,)](keys, found, order, values, position, turn, N=4096)
        streams = random.later(random.streams(keys, torch.tensor([position], device=DEVICE)), turn)
        counters = torch.arange(4096, device=DEVICE)
        wanted = random.exponentials(streams, counters)[0]
        torch.testing.assert_close(found, wanted, rtol=2e-6, atol=0)
        assert order[2] == order[3]
        assert torch.equal(order.argsort(stable=True), values.argsort(stable=True))
        with pytest.raises(AssertionError):  # another turn
            torch.testing.assert_close(found, random.exponentials(random.later(streams, 1), counters)[0])


def check_logprobs(dtype: torch.dtype, k: int, rows: list[int] | None, spoil=lambda x: None) -> None:
    x = logits(5, 0, dtype)
    x[1, :600] = -torch.inf
    own = torch.tensor([3, 1000, 2, int(x[3].argmax()), -1], device=DEVICE)
    picked = None if rows is None else torch.tensor(rows, device=DEVICE)
    asked = own if picked is None else own[picked]
    wanted = (x if picked is None else x[picked]).float().log_softmax(-1)
    spoil(x)
    ids, values, ranks = sampling_logprobs.logprobs(x, picked, asked, k)
    assert ids.dtype == ranks.dtype == torch.int32 and ids.shape == values.shape == (len(asked), k + 1)
    assert ids[:, 0].tolist() == asked.clamp(min=0).tolist()
    assert ranks.tolist() == [1 + int((row > row[i]).sum()) for row, i in zip(wanted, ids[:, 0].long(), strict=True)]
    torch.testing.assert_close(values, wanted.gather(1, ids.long()))
    torch.testing.assert_close(values[:, 1:], wanted.topk(k).values)
    assert all(len(set(row)) == k for row in ids[:, 1:].tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_logprobs(dtype, monkeypatch):
    monkeypatch.setattr(sampling_logprobs, "TILE", 512)
    for k in (0, 1, 7):
        check_logprobs(dtype, k, None)
    check_logprobs(dtype, 100, [3, 1, 4])
    monkeypatch.setattr(sampling, "MOST_GROUPS", 32)
    check_logprobs(dtype, 7, [3, 1, 4])


@pytest.mark.parametrize(("at", "value"), [(5, 9.0), (1099, 30.0), (3, -9.0)])
def test_logprobs_of_other_logits_are_seen(at, value):
    with pytest.raises(AssertionError):
        check_logprobs(torch.float32, 3, None, lambda x: x[0, at].add_(value))


def test_logprobs_of_a_row_that_is_not_finite():
    x = logits(2)
    x[0, 9] = torch.nan
    _ids, values, _ranks = sampling_logprobs.logprobs(x, None, torch.tensor([-1, 4], device=DEVICE), 3)
    assert values[0].isnan().all() and values[1].isfinite().all()


def test_kernels_compile_for_every_target(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)  # nothing compiled before counts
    command = [sys.executable, "-m", "tests.kernels.compile_sampling"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 20


def test_masks_of_grammars():
    """Only what they allow, by the kernels as by torch, and in a captured step (`sample_static`) too."""
    asked = [*PLAIN, PLAIN[2] | EDITS[2], PLAIN[0] | EDITS[0]]
    ours, torch_s = samplers(asked)
    bits = np.random.default_rng(0).integers(0, 2, (len(asked), -(-V // 32) * 32), np.uint8)
    bits[[0, 2, 4, 6]] = 0  # greedy, top_p, min_p, top_k with one token left
    bits[[0, 2, 4, 6], [77, 0, 1099, 512]] = 1
    masks = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
    masked = np.arange(0, len(asked), 2, dtype=np.int32)
    for sampler in (ours, torch_s):
        for row in masked.tolist():
            params = SamplingParams(**asked[row])
            sampler.join(replace(join(row, params, prompt=[row, 5], seed=row, stop_ids=[1, 2]), masked=True))
        sampler.write_masks(masked, masks[masked])
    x = logits(len(asked))
    mode = ours.graph_mode(np.arange(len(asked)), NOTHING, False)
    assert mode is not None
    found = tokens(ours, x, 3)
    assert found == tokens(torch_s, x, 3)
    assert all(bits[row, found[row]] for row in masked.tolist())
    again, _ = samplers(asked)  # the penalties of the first have counted its tokens
    for row in masked.tolist():
        params = SamplingParams(**asked[row])
        again.join(replace(join(row, params, prompt=[row, 5], seed=row, stop_ids=[1, 2]), masked=True))
    again.write_masks(masked, masks[masked])
    assert again.graph_mode(np.arange(len(asked)), NOTHING, False) == mode
    rows = torch.arange(len(asked), device=DEVICE)
    assert again.sample_static(mode, x, rows, torch.full_like(rows, 3)).tolist() == found
