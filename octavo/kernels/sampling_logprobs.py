"""Logprobs of tokens, their ranks and the k likeliest, from logits of any float type, which are read once.

`tally`, a program a row and tile of it, leaves what the tile adds up to, how many of its tokens are likelier, and the
largest logit of each group of tokens. `report`, a program a row, adds up and picks the k likeliest in order out of the
k groups with the largest maxima. `octavo.sampling.logprobs` is the reference.

Legend: S rows of logits, M rows that are asked about, V vocabulary, T tiles of a row, C groups, K columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.sampling import choose_groups, group_size
from octavo.kernels.sampling_parts import INFINITY, LARGEST, LEAST, sortable

TILE = 8192


@triton.jit
def tally_kernel(
    logits_ptr,
    stride,
    rows_ptr,  # int64 [M]
    tokens_ptr,  # int64 [M]; -1 is taken for 0
    sums_ptr,  # float32 [M, T]: logarithms of sums of exponentials
    counts_ptr,  # int32 [M, T]
    groups_ptr,  # int32 [M, C]: sortable
    V: tl.constexpr,
    PICK_ROWS: tl.constexpr,  # else all of them are asked about
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
):
    GROUPS: tl.constexpr = (V + GROUP - 1) // GROUP
    entry = tl.program_id(1).to(tl.int64)
    number = entry
    if PICK_ROWS:
        number = tl.load(rows_ptr + entry)
    logits_ptr += number * stride
    token = tl.program_id(0) * TILE + tl.arange(0, TILE)
    x = tl.load(logits_ptr + token, mask=token < V, other=-INFINITY).to(tl.float32)
    own = tl.load(logits_ptr + tl.maximum(tl.load(tokens_ptr + entry), 0)).to(tl.float32)
    group = tl.program_id(0) * (TILE // GROUP) + tl.arange(0, TILE // GROUP)
    clean = tl.where(x == x, x, INFINITY)
    most = tl.max(tl.reshape(clean, [TILE // GROUP, GROUP]), 1)
    tl.store(groups_ptr + entry * GROUPS + group, sortable(most, 0), mask=group < GROUPS)
    best = tl.max(most, 0)
    relative = tl.where(best > -INFINITY, best, 0.0)  # a tile of -inf adds up to -inf
    at = entry * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums_ptr + at, relative + tl.log(tl.sum(tl.exp(x - relative), 0)))
    tl.store(counts_ptr + at, tl.sum((x > own).to(tl.int32), 0))


@triton.jit
def report_kernel(
    logits_ptr,
    stride,
    rows_ptr,
    tokens_ptr,
    sums_ptr,
    counts_ptr,
    groups_ptr,  # written
    ids_ptr,  # int32 [M, K]
    logprobs_ptr,  # float32 [M, K]
    ranks_ptr,  # int32 [M]
    columns,
    V: tl.constexpr,
    PICK_ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS_P2: tl.constexpr,
    TILES: tl.constexpr,
    TILES_P2: tl.constexpr,
    COLUMNS_P2: tl.constexpr,
):
    GROUPS: tl.constexpr = (V + GROUP - 1) // GROUP
    entry = tl.program_id(0).to(tl.int64)
    number = entry
    if PICK_ROWS:
        number = tl.load(rows_ptr + entry)
    logits_ptr += number * stride
    ids_ptr += entry * columns
    logprobs_ptr += entry * columns
    tile = tl.arange(0, TILES_P2)
    sums = tl.load(sums_ptr + entry * TILES + tile, mask=tile < TILES, other=-INFINITY)
    most = tl.max(sums, 0)
    total = most + tl.log(tl.sum(tl.exp(sums - most), 0))
    likelier = tl.sum(tl.load(counts_ptr + entry * TILES + tile, mask=tile < TILES, other=0), 0)
    own = tl.maximum(tl.load(tokens_ptr + entry), 0).to(tl.int32)
    tl.store(ids_ptr, own)
    tl.store(logprobs_ptr, tl.load(logits_ptr + own).to(tl.float32) - total)
    tl.store(ranks_ptr + entry, likelier + 1)
    if columns > 1:
        groups_ptr += entry * GROUPS
        count, _low, _largest = choose_groups(groups_ptr, columns - 1, columns - 1, V, GROUP, GROUPS_P2)
        at = tl.arange(0, COLUMNS_P2)
        group = tl.load(groups_ptr + at, mask=at < count, other=0)
        token = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        inside = (at < count)[:, None] & (token < V)
        x = tl.load(logits_ptr + token, mask=inside, other=-INFINITY).to(tl.float32)
        key = tl.where(inside, sortable(tl.where(x == x, x, INFINITY), 0), LEAST)
        for column in range(1, columns):
            first = tl.max(tl.max(key, 1), 0)
            winner = tl.min(tl.min(tl.where(key == first, token, LARGEST), 1), 0)
            here = token == winner
            value = tl.max(tl.max(tl.where(here, x, -INFINITY), 1), 0)
            tl.store(ids_ptr + column, winner)
            tl.store(logprobs_ptr + column, value - total)
            key = tl.where(here, LEAST, key)


def logprobs(logits_SV: Tensor, rows_M: Tensor | None, tokens_M: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ids [M, K], logprobs [M, K], ranks [M]) of tokens that follow some rows, or all of them.

    Column 0 is the token itself. k is at most a few hundred: they are picked one after the other.
    """
    vocab_size, size, device = logits_SV.shape[1], len(tokens_M), logits_SV.device
    assert logits_SV.stride(1) == 1
    columns, group = min(k, vocab_size) + 1, group_size(vocab_size)
    tile = max(group, min(TILE, triton.next_power_of_2(vocab_size)))
    tiles, groups = triton.cdiv(vocab_size, tile), triton.cdiv(vocab_size, group)
    ids_MK = torch.empty(size, columns, dtype=torch.int32, device=device)
    logprobs_MK = torch.empty(size, columns, dtype=torch.float32, device=device)
    ranks_M = torch.empty(size, dtype=torch.int32, device=device)
    if not size:
        return ids_MK, logprobs_MK, ranks_M
    state = (
        logits_SV,
        logits_SV.stride(0),
        tokens_M if rows_M is None else rows_M,
        tokens_M,
        torch.empty(size, tiles, dtype=torch.float32, device=device),
        torch.empty(size, tiles, dtype=torch.int32, device=device),
        torch.empty(size, groups, dtype=torch.int32, device=device),
    )
    flags = {"V": vocab_size, "PICK_ROWS": rows_M is not None, "GROUP": group, "enable_fp_fusion": False}
    tally_kernel[(tiles, size)](*state, TILE=tile, num_warps=8, **flags)
    report_kernel[(size,)](
        *state,
        ids_MK,
        logprobs_MK,
        ranks_M,
        columns,
        GROUPS_P2=triton.next_power_of_2(groups),
        TILES=tiles,
        TILES_P2=triton.next_power_of_2(tiles),
        COLUMNS_P2=triton.next_power_of_2(columns),
        num_warps=8,
        **flags,
    )
    return ids_MK, logprobs_MK, ranks_M
