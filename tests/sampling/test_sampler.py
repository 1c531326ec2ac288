"""The sampler as a whole: what a row gets is its own affair, and a row that is taken over starts anew."""

from typing import Any

import numpy as np
import pytest
import torch

from octavo.core.params import SamplingParams
from octavo.sampling import state
from octavo.sampling.sampler import Kind, Mode, Sampler
from tests.sampling.reference import NOTHING, edited, join, p_value, probabilities, step

V = 1100
PLAIN: list[dict[str, Any]] = [{"temperature": 0}, {}, {"top_p": 0.8}, {"top_k": 20}]
EVERYTHING: dict[str, Any] = {
    "logit_bias": {3: 5.0, 700: -5.0},
    "allowed_token_ids": list(range(0, V, 3)),
    "min_tokens": 3,
    "repetition_penalty": 1.4,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "min_p": 0.01,
    "logprobs": 4,
}


def logits(rows: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def mixed(count: int) -> list[SamplingParams]:
    """Half of them plain, half using everything; and no two of a kind with the same numbers."""
    asked = []
    for row in range(count):
        given = PLAIN[row // 2 % 4] | (EVERYTHING if row % 2 else {})
        if row >= 8:
            given = {"temperature": 0.7, "min_p": 0.03} | given
        asked.append(SamplingParams(**given))
    return asked


def generate(sampler: Sampler, asked: list[SamplingParams], rows: list[int], steps: int, order_seed: int) -> np.ndarray:
    """Tokens [steps, len(asked)] of sequences that hold these rows, in an order of their own at each step."""
    for number, row in enumerate(rows):
        prompt = [number, 5, number]
        sampler.join(join(row, asked[number], prompt=prompt, seed=number, stop_ids=[1, 2]))
    found = np.zeros((steps, len(asked)), np.int64)
    rng = np.random.default_rng(order_seed)
    for turn in range(steps):
        order = rng.permutation(len(asked)) if order_seed else np.arange(len(asked))
        x = logits(64, turn)[order]
        banned = [(place, 9) for place, number in enumerate(order) if number % 2]
        tokens = step(sampler, x, [rows[number] for number in order], [3 + turn] * len(order), banned).tokens_S
        found[turn, order] = tokens.numpy()
    return found


def test_a_row_gets_the_same_alone_and_in_any_batch() -> None:
    asked = mixed(16)
    together = Sampler(40, V, "cpu")
    answers = generate(together, asked, list(range(16)), 6, 0)
    shuffled = Sampler(40, V, "cpu")
    shuffled.chunk_rows = 3
    rows = np.random.default_rng(1).permutation(40)[:16].tolist()
    assert np.array_equal(answers, generate(shuffled, asked, rows, 6, 1))
    for number in range(16):
        alone = Sampler(1, V, "cpu")
        alone.join(join(0, asked[number], prompt=[number, 5, number], seed=number, stop_ids=[1, 2]))
        for turn in range(6):
            banned = [(0, 9)] if number % 2 else []
            token = step(alone, logits(64, turn)[number : number + 1], [0], [3 + turn], banned).tokens_S
            assert int(token[0]) == answers[turn, number]


def test_a_row_that_is_taken_over_keeps_nothing() -> None:
    """Owners follow one another on few rows; each gets what it would get on a sampler of its own."""
    sampler, asked = Sampler(4, V, "cpu"), mixed(32)
    for row in range(4):
        sampler.join(join(row, asked[2 * row + 1], stop_ids=[1, 2, 3, 4, 5]))
    for number in np.random.default_rng(0).permutation(32).tolist():
        taken = join(number % 4, asked[number], prompt=[number, 5, number], seed=number, stop_ids=[1, 2])
        sampler.join(taken)
        taken.row = 0
        fresh = Sampler(1, V, "cpu")
        fresh.join(taken)
        # The other rows say something too, for which their later owners must not be penalised.
        rows = [number % 4, *(row for row in range(4) if row != number % 4)]
        for turn in range(5):
            x, positions = logits(4, 50 * number + turn), [3 + turn] * 4
            found = step(sampler, x, rows, positions)
            wanted = step(fresh, x[:1], [0], positions[:1])
            assert int(found.tokens_S[0]) == int(wanted.tokens_S[0])
            assert (wanted.logprobs is not None) == (found.logprobs is not None and 0 in found.logprobs.index_M)


def test_plain_greedy_rows_take_one_argmax() -> None:
    sampler = Sampler(8, V, "cpu")
    for row in range(8):
        sampler.join(join(row, SamplingParams(temperature=0)))
    sampler.chunk_rows = 2
    x = logits(8)
    assert step(sampler, x, list(range(8)), [1] * 8).tokens_S.tolist() == x.argmax(-1).tolist()
    assert sampler._batch is not None
    assert [(group.kind.mode, group.edits) for group in sampler._batch.groups] == [(Mode.GREEDY, ())]
    assert sampler._batch.order_S is None


def test_only_rows_with_a_feature_pay_for_it() -> None:
    sampler = Sampler(16, V, "cpu")
    for row, params in enumerate(mixed(16)):
        sampler.join(join(row, params, stop_ids=[1]))
    step(sampler, logits(16), list(range(16)), [1] * 16)
    assert sampler._batch is not None
    seen = {(group.kind.mode, bool(group.edits)): group.stop - group.start for group in sampler._batch.groups}
    assert seen == {(mode, edits): 2 for mode in Mode for edits in (False, True)}


def test_kinds_survive_as_bytes() -> None:
    for mode in Mode:
        for edited_ in (False, True):
            for exponent in (0, 4, 31):
                kind = Kind(mode, edited_, 1 << exponent)
                assert kind.code() < 256 and Kind.of(kind.code()) == kind


def test_nothing_is_built_anew_while_rows_stay() -> None:
    sampler = Sampler(8, V, "cpu")
    for row in range(4):
        sampler.join(join(row, SamplingParams(temperature=1.0)))
    x = logits(4)
    step(sampler, x, [0, 1, 2, 3], [1] * 4)
    batch = sampler._batch
    step(sampler, x, [0, 1, 2, 3], [2] * 4, steady=True)
    step(sampler, x, [0, 1, 2, 3], [3] * 4)
    assert sampler._batch is batch
    step(sampler, x, [0, 1, 3, 2], [4] * 4)
    assert sampler._batch is not batch
    batch = sampler._batch
    sampler.join(join(2, SamplingParams(temperature=0)))
    assert int(step(sampler, x, [0, 1, 3, 2], [4] * 4).tokens_S[3]) == int(x[3].argmax())
    assert sampler._batch is not batch


def test_the_caller_may_change_its_array_of_rows() -> None:
    sampler = Sampler(2, V, "cpu")
    sampler.join(join(0, SamplingParams(temperature=0)))
    sampler.join(join(1, SamplingParams(temperature=0, logit_bias={7: 100.0})))
    x, rows, positions = logits(1), np.zeros(1, np.int32), torch.ones(1, dtype=torch.int64)
    for row in (0, 1):
        rows[0] = row
        token = sampler.sample(x, torch.tensor([row]), positions, rows, NOTHING, False).tokens_S
        assert (int(token) == 7) == bool(row)


@pytest.mark.parametrize("asked", [*PLAIN, PLAIN[1] | {"logit_bias": {3: 1.0}}, PLAIN[0] | {"presence_penalty": 1.0}])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_that_is_not_finite_gives_no_token_and_disturbs_nobody(
    asked: dict, bad: float, dtype: torch.dtype
) -> None:
    sampler = Sampler(5, V, "cpu")
    for row in range(5):
        sampler.join(join(row, SamplingParams(**asked), seed=row))
    x = logits(5, dtype=dtype)
    wanted = step(sampler, x, list(range(5)), [1] * 5).tokens_S.tolist()
    for row in range(5):
        sampler.join(join(row, SamplingParams(**asked), seed=row))
    x[1, 1099] = bad
    x[3] = bad
    found = step(sampler, x, list(range(5)), [1] * 5).tokens_S.tolist()
    assert found == [wanted[0], -1, wanted[2], -1, wanted[4]]
    x[3] = float("-inf")
    assert step(sampler, x, list(range(5)), [2] * 5).tokens_S[3] == -1


def test_no_rows() -> None:
    sampler = Sampler(2, V, "cpu")
    assert step(sampler, torch.empty(0, V), [], []).tokens_S.shape == (0,)


@pytest.mark.parametrize("seed", [0, 1, -5, 2**63 - 1, 2**64 - 1])
def test_a_seed_gives_the_same_answer_again_and_another_seed_another(seed: int) -> None:
    def answer(seed: int, row: int) -> list[int]:
        sampler = Sampler(9, V, "cpu")
        sampler.join(join(row, SamplingParams(temperature=1.0), seed=seed))
        return [int(step(sampler, logits(1, turn), [row], [1 + turn]).tokens_S[0]) for turn in range(20)]

    assert answer(seed, 0) == answer(seed, 8)
    assert answer(seed, 0) != answer(seed + 1, 0)


def test_frequencies_with_everything_at_once() -> None:
    """Many rows with the same parameters and different seeds, at the step after an answer."""
    count, prompt, answer = 6000, [4, 9, 4], [3, 6, 6]
    params = SamplingParams(**EVERYTHING | {"temperature": 1.5, "top_p": 0.9, "logprobs": None})
    sampler = Sampler(count, V, "cpu")
    for row in range(count):
        sampler.join(join(row, params, prompt, answer, seed=row, stop_ids=[1, 2]))
    x = logits(1)
    tokens = step(sampler, x.repeat(count, 1), list(range(count)), [6] * count).tokens_S
    wanted = probabilities(edited(x[0], params, prompt, answer, [1, 2]), params)
    assert p_value(np.bincount(tokens, minlength=V), wanted) > 1e-4


def test_rows_are_independent_of_one_another() -> None:
    """Pairs of tokens that neighbouring seeds draw at one position, and one seed at neighbouring positions."""
    x = torch.zeros(1, 8)
    sampler = Sampler(5000, 8, "cpu")
    for row in range(5000):
        sampler.join(join(row, SamplingParams(temperature=1.0), seed=row))
    by_seed = step(sampler, x.repeat(5000, 1), list(range(5000)), [1] * 5000).tokens_S
    by_position = step(sampler, x.repeat(5000, 1), [0] * 5000, list(range(5000))).tokens_S
    for tokens in (by_seed, by_position):
        pairs = np.bincount(tokens[:-1] * 8 + tokens[1:], minlength=64)
        assert p_value(pairs, np.full(64, 1 / 64)) > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_types_of_logits_give_what_their_values_give(dtype: torch.dtype) -> None:
    asked = mixed(8)
    x = logits(8, dtype=dtype)
    found = []
    for given in (x, x.float()):
        sampler = Sampler(8, V, "cpu")
        for row in range(8):
            sampler.join(join(row, asked[row], prompt=[row], seed=row, stop_ids=[1]))
        found.append(step(sampler, given, list(range(8)), [1] * 8).tokens_S.tolist())
    assert found[0] == found[1]


def test_a_device_with_memory_of_its_own_sees_every_join(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the tables of host and device are two: here both are on the CPU, and only `upload` connects them."""
    asked, rows = mixed(16), list(range(16))
    together = Sampler(16, V, "cpu")
    monkeypatch.setattr(state, "upload", lambda array, device: torch.from_numpy(array.copy()))
    apart = Sampler(16, V, "cpu")
    apart.table.shared = False
    for _ in range(2):  # the second time every row is taken over
        assert np.array_equal(generate(together, asked, rows, 5, 0), generate(apart, asked, rows, 5, 0))
        asked = asked[1:] + asked[:1]


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    answers = []
    for device in ("cpu", "cuda"):
        sampler = Sampler(32, V, device)
        for row, params in enumerate(mixed(32)):
            sampler.join(join(row, params, prompt=[row, 5], seed=row, stop_ids=[1, 2]))
        found = []
        for turn in range(8):
            rows = np.arange(32, dtype=np.int32)
            rows_S, positions_S = torch.arange(32, device=device), torch.full((32,), 2 + turn, device=device)
            x, banned = logits(32, turn).to(device), (np.array([1], np.int32), np.array([9], np.int32))
            torch.cuda.set_sync_debug_mode("error")
            sampled = sampler.sample(x, rows_S, positions_S, rows, banned, turn > 0)
            torch.cuda.set_sync_debug_mode("default")
            found.append(sampled.tokens_S.tolist())
        answers.append(found)
    assert answers[0] == answers[1]


@pytest.mark.gpu
@pytest.mark.parametrize("features", [[PLAIN[0]], PLAIN[:3], PLAIN, [plain | EVERYTHING for plain in PLAIN]])
def test_a_replay_gives_what_a_call_gives_whatever_has_joined_since(features: list[dict[str, Any]]) -> None:
    asked = [SamplingParams(**given | {"logprobs": None}) for given in features]
    captured, called = Sampler(16, V, "cuda"), Sampler(16, V, "cuda")
    x, rows_S = logits(16).cuda(), torch.full((16,), 16, device="cuda")
    positions_S = torch.zeros(16, dtype=torch.int64, device="cuda")

    def take_over(first: int) -> None:
        for row in range(16):
            for sampler in (captured, called):
                params = asked[(row + first) % len(asked)]
                sampler.join(join(row, params, prompt=[row, 5], seed=row + first, stop_ids=[1, 2]))

    take_over(0)
    mode = captured.graph_mode(np.arange(16), NOTHING, False)
    assert mode is not None
    captured.sample_static(mode, x, rows_S, positions_S)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens_S = captured.sample_static(mode, x, rows_S, positions_S)
    graph.replay()
    assert torch.equal(tokens_S, x.argmax(-1)), "the spare row is greedy"
    for first in range(3):
        take_over(first)
        rows = np.random.default_rng(first).permutation(16).astype(np.int32)
        assert captured.graph_mode(rows, NOTHING, False) == mode
        rows_S.copy_(torch.from_numpy(rows))
        for turn in range(5):
            x.copy_(logits(16, 10 * first + turn))
            positions_S.fill_(2 + turn)
            graph.replay()
            assert torch.equal(tokens_S, called.sample(x, rows_S, positions_S, rows, NOTHING, turn > 0).tokens_S)
