"""Routing of tokens to experts, in one launch: scores, choice, weights, and which expert's rows lie where.

A program is a token. Where experts' rows are to lie together, each program takes a place for each of its pairs with an
atomic addition to the expert's counter; whoever arrives last adds the counters up, lists tiles of rows for the
products, and leaves the counters at zero. Places within an expert follow from who comes first, results do not: a row's
product does not depend on where it lies, and weighted sums are taken in the order of a token's experts. The grid
follows from the number of tokens, nothing is read on the host. `octavo.moe.routing` says in torch what is computed.

Legend: T tokens, X experts, K experts of a token, P = T * K pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.chain import chain

MOST_EXPERTS = 1024
PAIRS = 256  # pairs that are sorted at a time


@triton.jit
def first_of(values, index, top, none: tl.constexpr):
    """The lowest index that has the value `top`; if none has, because it is no number, `none`."""
    return tl.min(tl.where(values == top, index, none), 0)


@triton.jit
def align(
    counts_ptr, starts_ptr, ends_ptr, tiles_ptr, order_ptr, experts_ptr, ranks_ptr, pairs, tiles,
    X: tl.constexpr, X_P2: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """What the last program does: where each expert's rows begin and end, tiles of them, and pairs in that order."""
    index = tl.arange(0, X_P2)
    inside = index < X
    count = tl.load(counts_ptr + index, mask=inside, other=0, cache_modifier=".cg")
    tl.store(counts_ptr + index, 0, mask=inside)
    tl.store(counts_ptr + X, 0)
    end = tl.cumsum(count, 0)
    start = end - count
    tl.store(starts_ptr + index, start, mask=inside)
    tl.store(ends_ptr + index, end, mask=inside)
    if ROWS > 0:
        blocks = tl.cdiv(count, ROWS)
        last = tl.cumsum(blocks, 0)
        total = tl.sum(blocks, 0)
        for i in range(0, tl.max(blocks, 0)):  # each expert lists its own
            row = tiles_ptr + (last - blocks + i) * 4
            more = i < blocks
            tl.store(row, index, mask=more)
            tl.store(row + 1, start + i * ROWS, mask=more)
            tl.store(row + 2, tl.minimum(count - i * ROWS, ROWS), mask=more)
        for begin in range(total, tiles, X_P2):
            tl.store(tiles_ptr + (begin + index) * 4, -1, mask=begin + index < tiles)
        tl.debug_barrier()  # starts are stored before any thread reads them
        for begin in range(0, pairs, PAIRS):
            pair = begin + tl.arange(0, PAIRS)
            kept = pair < pairs
            expert = tl.load(experts_ptr + pair, mask=kept, other=0, cache_modifier=".cg")
            rank = tl.load(ranks_ptr + pair, mask=kept, other=0, cache_modifier=".cg")
            first = tl.load(starts_ptr + expert, mask=kept, other=0, cache_modifier=".cg")
            tl.store(order_ptr + first + rank, pair, mask=kept)


@triton.jit(do_not_specialize=["tokens", "tiles"])
def route_kernel(
    logits_ptr,  # [T, X]
    bias_ptr,  # [X]
    weights_ptr,  # [T, K] float32
    experts_ptr,  # [T, K] int32
    ranks_ptr,  # [T, K] int32: a pair's place among its expert's
    counts_ptr,  # [X + 1] int32, zeros between launches: pairs of each expert, programs that are done
    starts_ptr,  # [X] int32: where the rows of each expert begin
    ends_ptr,  # [X] int32
    tiles_ptr,  # [tiles, 4] int32: expert or -1, first row, rows
    order_ptr,  # [P] int32: pairs by expert
    tokens,
    tiles,
    scale,
    jitter,
    X: tl.constexpr,
    X_P2: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_P2: tl.constexpr,
    SIZE_P2: tl.constexpr,  # of a group
    KEPT: tl.constexpr,
    BEST: tl.constexpr,
    K: tl.constexpr,
    K_P2: tl.constexpr,
    SCORE: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BIAS: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,  # of a tile; 0: neither tiles nor order are wanted
    PAIRS: tl.constexpr,
    CHAINED: tl.constexpr,
):
    SIZE: tl.constexpr = X // GROUPS
    group = tl.arange(0, GROUPS_P2)
    member = tl.arange(0, SIZE_P2)
    inside = (group < GROUPS)[:, None] & (member < SIZE)[None, :]
    expert = group[:, None] * SIZE + member[None, :]
    token = tl.program_id(0).to(tl.int64)
    if BIAS:
        bias = tl.load(bias_ptr + expert, mask=inside, other=0.0)
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    logits = tl.load(logits_ptr + token * X + expert, mask=inside, other=0.0).to(tl.float32)
    logits = tl.where(logits == logits, logits, -1e30)  # a row that went wrong must not lead out of the experts
    if SCORE == "softmax":
        logits = tl.where(inside, logits, float("-inf"))
        scores = tl.exp(logits - tl.max(tl.max(logits, 1), 0))
        scores /= tl.sum(tl.sum(scores, 1), 0)
    elif SCORE == "sigmoid":
        scores = tl.sigmoid(logits)
    else:
        scores = logits
    choice = scores + bias if BIAS else scores
    choice = tl.where(inside, choice, float("-inf"))
    if GROUPS > 1:
        left = choice
        best = tl.zeros([GROUPS_P2], tl.float32)
        for i in tl.static_range(BEST):
            top = tl.max(left, 1)
            best += top
            if i + 1 < BEST:
                place = tl.min(tl.where(left == top[:, None], member[None, :], SIZE_P2), 1)
                left = tl.where(member[None, :] == place[:, None], float("-inf"), left)
        keep = tl.zeros([GROUPS_P2], tl.int32)
        for _ in tl.static_range(KEPT):
            found = first_of(best, group, tl.max(best, 0), GROUPS - 1)
            keep = tl.where(group == found, 1, keep)
            best = tl.where(group == found, float("-inf"), best)
        choice = tl.where((keep > 0)[:, None], choice, float("-inf"))
    choice = tl.reshape(choice, [GROUPS_P2 * SIZE_P2])
    scores = tl.reshape(scores, [GROUPS_P2 * SIZE_P2])
    expert = tl.reshape(tl.where(inside, expert, X), [GROUPS_P2 * SIZE_P2])
    slot = tl.arange(0, K_P2)
    chosen = tl.zeros([K_P2], tl.int32)
    weight = tl.full([K_P2], float("-inf") if SCORE == "chosen" else 0.0, tl.float32)
    for k in tl.static_range(K):
        top = tl.max(choice, 0)
        found = first_of(choice, expert, top, X - 1)
        own = expert == found
        if SCORE == "sparsemixer":
            far = (top - scores) / tl.maximum(tl.abs(scores), top) > 2 * jitter
            share = 1 / tl.sum(tl.where(far, 0.0, tl.exp(choice - top)), 0)
        else:
            share = tl.sum(tl.where(own, scores, 0.0), 0)
        weight = tl.where(slot == k, share, weight)
        chosen = tl.where(slot == k, found, chosen)
        choice = tl.where(own, float("-inf"), choice)
    if SCORE == "chosen":
        weight = tl.exp(weight - tl.max(weight, 0))
        weight /= tl.sum(weight, 0)
    if RENORMALIZE:
        weight /= tl.maximum(tl.sum(weight, 0), 1e-20)
    pair = token * K + slot
    kept = slot < K
    tl.store(weights_ptr + pair, weight * scale, mask=kept)
    tl.store(experts_ptr + pair, chosen, mask=kept)
    if ALIGN:
        rank = tl.atomic_add(counts_ptr + chosen, 1, mask=kept, sem="relaxed")
        tl.store(ranks_ptr + pair, rank, mask=kept)
        tl.debug_barrier()  # all of this program's pairs are written before it says so
        if tl.atomic_add(counts_ptr + X, 1, sem="acq_rel") == tokens - 1:
            tl.debug_barrier()
            align(
                counts_ptr, starts_ptr, ends_ptr, tiles_ptr, order_ptr, experts_ptr, ranks_ptr, tokens * K, tiles,
                X, X_P2, ROWS, PAIRS,
            )  # fmt: skip


@dataclass(slots=True)
class Routed:
    """What a launch leaves. Without rows that lie together only the first two are there."""

    weights_TK: Tensor
    experts_TK: Tensor
    ranks_TK: Tensor
    starts_X: Tensor
    ends_X: Tensor
    tiles: Tensor
    order_P: Tensor


def most_tiles(pairs: int, experts: int, rows: int) -> int:
    """However pairs are spread over experts."""
    return min(pairs, experts) + pairs // rows


@cache
def _counters(device: torch.device) -> Tensor:
    """Shared by all layers: one stream a GPU."""
    return torch.zeros(MOST_EXPERTS + 1, dtype=torch.int32, device=device)


def route(logits_TX: Tensor, bias_X: Tensor | None, routing: Any, aligned: bool, rows: int = 0) -> Routed:
    """`aligned`: rows of an expert are to lie together; with `rows`, also tiles of so many and the pairs in order."""
    tokens, experts = logits_TX.shape
    assert experts == routing.num_experts <= MOST_EXPERTS and logits_TX.is_contiguous()
    device, top_k = logits_TX.device, routing.top_k
    pairs = tokens * top_k
    tiles = most_tiles(pairs, experts, rows) if rows else 0
    size = experts // routing.groups
    # One allocation for all that is int32, each part at a multiple of 16 bytes.
    sizes = [pairs, pairs if aligned else 0, *(experts if aligned else 0,) * 2, 4 * tiles, pairs if rows else 0]
    whole = torch.empty(sum(-(-s // 4) * 4 for s in sizes), dtype=torch.int32, device=device)
    parts, begin = [], 0
    for s in sizes:
        parts.append(whole[begin : begin + s])
        begin += -(-s // 4) * 4
    experts_P, ranks_P, starts_X, ends_X, listed, order_P = parts
    weights_TK = torch.empty(tokens, top_k, dtype=torch.float32, device=device)
    groups_p2, size_p2 = triton.next_power_of_2(routing.groups), triton.next_power_of_2(size)
    route_kernel[(tokens,)](
        logits_TX,
        logits_TX if bias_X is None else bias_X,
        weights_TK,
        experts_P,
        ranks_P,
        _counters(device),
        starts_X,
        ends_X,
        listed,
        order_P,
        tokens,
        tiles,
        routing.scale,
        routing.jitter,
        X=experts,
        X_P2=triton.next_power_of_2(experts),
        GROUPS=routing.groups,
        GROUPS_P2=groups_p2,
        SIZE_P2=size_p2,
        KEPT=routing.kept_groups,
        BEST=routing.group_best,
        K=top_k,
        K_P2=triton.next_power_of_2(top_k),
        SCORE=routing.score,
        RENORMALIZE=routing.renormalize,
        BIAS=bias_X is not None,
        ALIGN=aligned or rows > 0,
        ROWS=rows,
        PAIRS=PAIRS,
        num_warps=1 if groups_p2 * size_p2 <= 256 else 4,
        **chain(device),
    )
    return Routed(weights_TK, experts_P.view(tokens, top_k), ranks_P, starts_X, ends_X, listed.view(-1, 4), order_P)
