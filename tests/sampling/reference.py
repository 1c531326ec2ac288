"""What the sampler must do, written the obvious way: one row, float64, sorting. And how to tell by counting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.core.params import SamplingParams
from octavo.core.plan import NO_INTS, RowJoin
from octavo.sampling.sampler import Sampled, Sampler

Floats = npt.NDArray[np.float64]
NOTHING = (NO_INTS, NO_INTS)


def edited(
    logits: Sequence[float] | Floats,
    params: SamplingParams,
    prompt: Sequence[int] = (),
    answer: Sequence[int] = (),
    stop_ids: Sequence[int] = (),
    banned: Sequence[int] = (),
) -> Floats:
    """The logits after everything that a greedy row heeds."""
    x = np.array([float(value) for value in logits])
    if params.allowed_token_ids is not None:
        for token in range(len(x)):
            if token not in params.allowed_token_ids:
                x[token] = -np.inf
    for token in banned:
        x[token] = -np.inf
    if len(answer) < params.min_tokens:
        for token in stop_ids:
            x[token] = -np.inf
    for token, value in (params.logit_bias or {}).items():
        x[token] += value
    for token in {*prompt, *answer}:
        x[token] = x[token] / params.repetition_penalty if x[token] > 0 else x[token] * params.repetition_penalty
    for token in answer:
        x[token] -= params.frequency_penalty
    for token in set(answer):
        x[token] -= params.presence_penalty
    return x


def probabilities(x: Sequence[float] | Floats, params: SamplingParams) -> Floats:
    """The distribution a token is drawn from, given edited logits; by sorting."""
    x = np.array(x, np.float64)
    if params.greedy:
        return np.eye(len(x))[int(np.argmax(x))]
    x = x / params.temperature
    p = np.exp(x - x.max())
    p /= p.sum()
    p[p < params.min_p * p.max()] = 0
    if 0 < params.top_k < len(p):
        p[p < np.sort(p)[-params.top_k]] = 0
    p /= p.sum()
    if params.top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        p[p < p[order][before < params.top_p][-1]] = 0
    return p / p.sum()


def p_value(counts: npt.NDArray[Any], p: Floats) -> float:
    """Of Pearson's test that counts are drawn from p. Tokens expected less than five times are taken together."""
    assert counts[p == 0].sum() == 0, f"impossible tokens were drawn: {np.flatnonzero((p == 0) & (counts > 0))}"
    expected = p * counts.sum()
    rare = expected < 5
    seen = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    if len(seen) == 1:
        return 1.0
    statistic = float(((seen - wanted) ** 2 / wanted).sum())
    return float(torch.special.gammaincc(torch.tensor((len(seen) - 1) / 2.0), torch.tensor(statistic / 2)))


def join(
    row: int,
    params: SamplingParams,
    prompt: Sequence[int] = (1,),
    answer: Sequence[int] = (),
    seed: int = 0,
    stop_ids: Sequence[int] = (),
) -> RowJoin:
    tokens = np.array([*prompt, *answer], np.int32)
    return RowJoin(row, params, seed, tokens, len(prompt), list(stop_ids))


def step(
    sampler: Sampler,
    logits_SV: Tensor,
    rows: Sequence[int],
    positions: Sequence[int] | Tensor,
    banned: Sequence[tuple[int, int]] = (),
    steady: bool = False,
) -> Sampled:
    """One call, checking that the logits are left as they were."""
    before = logits_SV.clone()
    host = np.array(rows, np.int32)
    pairs = np.array(banned, np.int32).reshape(-1, 2)
    sampled = sampler.sample(
        logits_SV,
        torch.tensor(host, dtype=torch.int64),
        torch.as_tensor(positions, dtype=torch.int64),
        host,
        (pairs[:, 0], pairs[:, 1]),
        steady,
    )
    assert torch.equal(logits_SV.nan_to_num(), before.nan_to_num())
    return sampled


def draws(
    logits: Sequence[float] | Tensor,
    params: SamplingParams,
    count: int,
    seed: int = 0,
    first: int = 0,
) -> npt.NDArray[np.int64]:
    """Tokens of one row at `count` positions, drawn in one call: a row that edits nothing may be repeated."""
    x = torch.as_tensor(logits, dtype=torch.float32)
    sampler = Sampler(1, len(x), "cpu")
    sampler.join(join(0, params, seed=seed))
    positions = torch.arange(first, first + count)
    tokens: npt.NDArray[np.int64] = step(sampler, x.repeat(count, 1), [0] * count, positions).tokens_S.numpy()
    return tokens
