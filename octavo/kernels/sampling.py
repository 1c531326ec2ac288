"""From logits to tokens in two launches, whatever mix of rows a batch is. Nothing is sorted or copied.

`scan` reads every logit once, a row split over as many programs as it has tiles. Of each block of 256 tokens it keeps
the largest logit and the mass (the sum of exponentials relative to that logit), and of rows with top_k the largest
logit of each group of 16 tokens. `choose`, a program a row, does the rest from these and looks at few logits again:

- greedy: the block with the largest logit;
- temperature: a race over the masses of the blocks, then over the tokens of the winning block;
- min_p and top_p: the same, and the row is read again to sum what is likelier than the token drawn, as long as one is
  rejected (see octavo.sampling.truncation); blocks with nothing likelier are skipped;
- top_k: the k groups with the largest maxima have the k likeliest tokens among theirs: these few are searched, by
  bisection over sortable integers, for the k-th largest logit and for where top_p cuts.

A row's numbers are read from tables by its row id, features that edit logits apply as they are loaded, and the counts
of its penalties are kept up to date: a captured step needs nothing from the host. `octavo.sampling` has the reference.

Legend: S sampled rows, R rows, V vocabulary, B blocks, C groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels import sampling_parts
from octavo.kernels.sampling_parts import exponential, later, logits_at, row_of, sortable, stream_of
from octavo.kernels.sampling_rows import Int, Mode, Real

BLOCK_SIZE = 256  # as octavo.sampling.blocks has it: the random numbers depend on it
MOST_GROUPS = 8192  # what fits into the registers of a program
TILE_BLOCKS = 32  # of a program of `scan`: 8192 tokens, 32 a thread, all of them on their way at once
SCAN_WARPS = 8

BLOCK = tl.constexpr(BLOCK_SIZE)
GROUPS_AT_ONCE = tl.constexpr(128)
REALS = tl.constexpr(len(Real))
INTS = tl.constexpr(len(Int))
TEMPERATURE = tl.constexpr(int(Real.TEMPERATURE))
TOP_P = tl.constexpr(int(Real.TOP_P))
MIN_P = tl.constexpr(int(Real.MIN_P))
KEY = tl.constexpr(int(Int.KEY))
K = tl.constexpr(int(Int.TOP_K))
MODE = tl.constexpr(int(Int.MODE))
CANDIDATES = tl.constexpr(int(Int.CANDIDATES))
IS_GREEDY = tl.constexpr(int(Mode.GREEDY))
IS_TOP_K = tl.constexpr(int(Mode.TOP_K))
COUNTS = sampling_parts.COUNTS
INFINITY = sampling_parts.INFINITY
LOG2_E = tl.constexpr(1.4426950408889634)
LARGEST = sampling_parts.LARGEST
LEAST = sampling_parts.LEAST


@triton.jit
def scan_kernel(
    logits_ptr,
    stride,
    rows_ptr,  # int64 [S]
    positions_ptr,  # int64 [S]
    reals_ptr,  # float32 [R, len(Real)]
    ints_ptr,  # int64 [R, len(Int)]
    maxima_ptr,  # float32 [S, B]
    masses_ptr,  # float32 [S, B]
    groups_ptr,  # int32 [S, C]: sortable
    floor,  # of stop ids that come too early
    V: tl.constexpr,
    SAMPLED: tl.constexpr,  # some rows are not greedy
    HAS_TOP_K: tl.constexpr,  # some have top_k
    EDITED: tl.constexpr,  # some have features that change logits
    SHIFT: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
):
    BLOCKS: tl.constexpr = (V + BLOCK - 1) // BLOCK
    entry = tl.program_id(1).to(tl.int64)
    number = tl.load(rows_ptr + entry)
    ints_ptr += number * INTS
    reals_ptr += number * REALS
    block = tl.program_id(0) * TILE + tl.arange(0, TILE)
    token = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    first = tl.program_id(0) * (TILE * BLOCK)
    position = tl.load(positions_ptr + entry)
    row = row_of(logits_ptr + entry * stride, position, floor, reals_ptr, ints_ptr, EDITED)
    x = logits_at(row, token, token < V, first, first + TILE * BLOCK, EDITED)
    if HAS_TOP_K:
        most = tl.max(tl.reshape(x, [TILE * BLOCK // GROUP, GROUP]), 1)
        maxima = tl.max(tl.reshape(most, [TILE, BLOCK // GROUP]), 1)
        if tl.load(ints_ptr + MODE) == IS_TOP_K:
            GROUPS: tl.constexpr = (V + GROUP - 1) // GROUP
            group = tl.program_id(0) * (TILE * BLOCK // GROUP) + tl.arange(0, TILE * BLOCK // GROUP)
            tl.store(groups_ptr + entry * GROUPS + group, sortable(most, SHIFT), mask=group < GROUPS)
    else:
        maxima = tl.max(x, 1)
    tl.store(maxima_ptr + entry * BLOCKS + block, maxima, mask=block < BLOCKS)
    if SAMPLED:
        mode = tl.load(ints_ptr + MODE)
        if (mode != IS_GREEDY) & (mode != IS_TOP_K):
            scale = LOG2_E / tl.load(reals_ptr + TEMPERATURE)
            relative = tl.where(maxima > -INFINITY, maxima, 0.0)  # a block of -inf has no mass
            masses = tl.sum(tl.exp2((x - relative[:, None]) * scale), 1)
            tl.store(masses_ptr + entry * BLOCKS + block, masses, mask=block < BLOCKS)


@triton.jit
def block_logits(row, block, V: tl.constexpr, EDITED: tl.constexpr):
    """(ids, logits) of one block."""
    first = block * BLOCK
    token = first + tl.arange(0, BLOCK)
    return token, logits_at(row, token, token < V, first, first + BLOCK, EDITED)


@triton.jit
def likeliest(row, maxima, best, V: tl.constexpr, BLOCKS_P2: tl.constexpr, EDITED: tl.constexpr):
    """The first token with the largest logit."""
    block = tl.min(tl.where(maxima == best, tl.arange(0, BLOCKS_P2), BLOCKS_P2), 0)
    token, x = block_logits(row, block, V, EDITED)
    return tl.min(tl.where(x == tl.max(x, 0), token, LARGEST), 0)


@triton.jit
def sampling_of(reals_ptr):
    """(factor that makes differences of logits powers of 2, the least power that min_p keeps, top_p)"""
    scale = LOG2_E / tl.load(reals_ptr + TEMPERATURE)
    min_p = tl.load(reals_ptr + MIN_P)
    least = tl.where(min_p > 0, tl.log2(tl.maximum(min_p, 1e-37)), -INFINITY)
    return scale, least, tl.load(reals_ptr + TOP_P)


@triton.jit
def sum_likelier(
    row, maxima_ptr, masses_ptr, best, above, scale, least, V: tl.constexpr, EDITED: tl.constexpr, TILE: tl.constexpr
):
    """Replaces the row's masses by those of the tokens with a logit larger than `above` that min_p keeps."""
    BLOCKS: tl.constexpr = (V + BLOCK - 1) // BLOCK
    tl.debug_barrier()  # whoever still reads the old masses
    for start in range(0, BLOCKS, TILE):
        block = start + tl.arange(0, TILE)
        maxima = tl.load(maxima_ptr + block, mask=block < BLOCKS, other=-INFINITY)
        hot = (maxima > above) & ((maxima - best) * scale >= least)
        masses = tl.zeros([TILE], tl.float32)
        if tl.max(hot.to(tl.int32), 0) > 0:
            token = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
            first = start * BLOCK
            x = logits_at(row, token, hot[:, None] & (token < V), first, first + TILE * BLOCK, EDITED)
            power = (x - best) * scale
            masses = tl.sum(tl.where((x > above) & (power >= least), tl.exp2(power), 0.0), 1)
        tl.store(masses_ptr + block, masses, mask=block < BLOCKS)
    tl.debug_barrier()


@triton.jit
def drawn(
    row, maxima_ptr, masses_ptr, maxima, best, stream, reals_ptr,
    V: tl.constexpr, BLOCKS_P2: tl.constexpr, EDITED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A token of all, of those min_p keeps, or of the nucleus: drawn again until it is in it."""
    BLOCKS: tl.constexpr = (V + BLOCK - 1) // BLOCK
    block = tl.arange(0, BLOCKS_P2)
    scale, least, top_p = sampling_of(reals_ptr)
    inner = tl.arange(0, BLOCK)
    masses = tl.load(masses_ptr + block, mask=block < BLOCKS, other=0.0) * tl.exp2((maxima - best) * scale)
    above = tl.full([], -INFINITY, tl.float32)
    limit = tl.full([], 0, tl.float32)
    spare = tl.full([], 0, tl.float32)
    turn = tl.full([], 0, tl.int32)
    chosen = tl.full([], 0, tl.int32)
    rejected = turn == 0
    again = least > -INFINITY
    while rejected:
        if again:
            sum_likelier(row, maxima_ptr, masses_ptr, best, above, scale, least, V, EDITED, TILE)
            masses = tl.load(masses_ptr + block, mask=block < BLOCKS, other=0.0)
        total = tl.sum(masses, 0)
        rejected = total >= limit
        if turn == 0:
            limit = top_p * total
            spare = total - limit
        if rejected:
            round_stream = tl.where(turn > 0, later(stream, turn), stream)
            winner = tl.argmax(masses / exponential(round_stream, block), 0)
            token, x = block_logits(row, winner, V, EDITED)
            power = (x - best) * scale
            weights = tl.where((x > above) & (power >= least), tl.exp2(power), 0.0)
            place = tl.argmax(weights / exponential(round_stream, inner + BLOCKS), 0)
            chosen = tl.min(tl.where(inner == place, token, LARGEST), 0)
            above = tl.max(tl.where(inner == place, x, -INFINITY), 0)
            # What is likelier than a token cannot reach the limit if the token's own weight exceeds the rest.
            rejected = (top_p < 1) & (tl.max(tl.where(inner == place, weights, 0.0), 0) <= spare)
            again = rejected
            turn += 1
    return chosen


@triton.jit
def choose_groups(groups_ptr, k, room, V: tl.constexpr, GROUP: tl.constexpr, GROUPS_P2: tl.constexpr):
    """(how many groups may have tokens of the top k, sortable numbers: one the k-th is not below, and the largest).

    The numbers of the groups replace the maxima of all of them in memory. Of groups that are as large as the k-th, as
    many are taken as `room` has for.
    """
    GROUPS: tl.constexpr = (V + GROUP - 1) // GROUP
    group = tl.arange(0, GROUPS_P2)
    inside = group < GROUPS
    most = tl.load(groups_ptr + group, mask=inside, other=LEAST)
    low = tl.min(tl.where(inside, most, LARGEST), 0).to(tl.int64)
    largest = tl.max(most, 0).to(tl.int64)
    high = largest
    while low < high:
        middle = (low + high + 1) >> 1
        enough = tl.sum((most >= middle.to(tl.int32)).to(tl.int32), 0) >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    larger = inside & (most > low.to(tl.int32))
    equal = inside & (most == low.to(tl.int32))
    ranks = tl.cumsum(tl.where(larger, 1, tl.where(equal, 1 << 16, 0)), 0)  # of both in one pass
    number = tl.sum(larger.to(tl.int32), 0)
    place = tl.where(larger, ranks & 0xFFFF, number + (ranks >> 16)) - 1
    taken = larger | (equal & (place < room))
    tl.debug_barrier()
    tl.store(groups_ptr + place, group, mask=taken)
    tl.debug_barrier()
    # Each of k groups has a token as large as `low`; where there are fewer groups nothing is known.
    return tl.sum(taken.to(tl.int32), 0), tl.where(k <= GROUPS, low, LEAST), largest


@triton.jit
def candidates(row, groups_ptr, start, count, V: tl.constexpr, EDITED: tl.constexpr, GROUP: tl.constexpr):
    """(ids, logits) of the tokens of some chosen groups; -inf past the last one."""
    at = start + tl.arange(0, GROUPS_AT_ONCE)
    group = tl.load(groups_ptr + at, mask=at < count, other=0)
    token = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    return token, logits_at(row, token, (at < count)[:, None] & (token < V), 0, V, EDITED)


@triton.jit
def kth_largest(
    row, groups_ptr, count, low, high, k,
    V: tl.constexpr, EDITED: tl.constexpr, SHIFT: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The k-th largest candidate, sortable, between `low` and `high`."""
    while low < high:
        middle = (low + high + 1) >> 1
        number = tl.full([], 0, tl.int32)
        for start in range(0, count, GROUPS_AT_ONCE):
            _token, x = candidates(row, groups_ptr, start, count, V, EDITED, GROUP)
            number += tl.sum(tl.sum((sortable(x, SHIFT) >= middle.to(tl.int32)).to(tl.int32), 1), 0)
        low = tl.where(number >= k, middle, low)
        high = tl.where(number >= k, high, middle - 1)
    return low


@triton.jit
def mass_from(
    row, groups_ptr, count, pivot, best, scale, least,
    V: tl.constexpr, EDITED: tl.constexpr, SHIFT: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The mass of the candidates that are at least `pivot` and that min_p keeps."""
    mass = tl.full([], 0, tl.float32)
    for start in range(0, count, GROUPS_AT_ONCE):
        _token, x = candidates(row, groups_ptr, start, count, V, EDITED, GROUP)
        power = (x - best) * scale
        kept = (sortable(x, SHIFT) >= pivot.to(tl.int32)) & (power >= least)
        mass += tl.sum(tl.sum(tl.where(kept, tl.exp2(power), 0.0), 1), 0)
    return mass


@triton.jit
def drawn_of_top_k(
    row, groups_ptr, best, stream, reals_ptr, ints_ptr,
    V: tl.constexpr, EDITED: tl.constexpr, SHIFT: tl.constexpr, GROUP: tl.constexpr, GROUPS_P2: tl.constexpr,
):  # fmt: skip
    k = tl.load(ints_ptr + K).to(tl.int32)
    room = tl.load(ints_ptr + CANDIDATES).to(tl.int32)
    scale, least, top_p = sampling_of(reals_ptr)
    count, low, largest = choose_groups(groups_ptr, k, room, V, GROUP, GROUPS_P2)
    low = kth_largest(row, groups_ptr, count, low, largest, k, V, EDITED, SHIFT, GROUP)
    if top_p < 1:  # for the smallest with less than top_p above it
        high = largest
        limit = tl.full([], -1, tl.float32)
        while (limit < 0) | (low < high):
            unknown = limit < 0
            middle = (low + high) >> 1
            pivot = tl.where(unknown, low, middle + 1)
            mass = mass_from(row, groups_ptr, count, pivot, best, scale, least, V, EDITED, SHIFT, GROUP)
            low = tl.where(unknown | (mass < limit), low, middle + 1)
            high = tl.where(unknown | (mass >= limit), high, middle)
            limit = tl.where(unknown, top_p * mass, limit)
    first = tl.full([], -1, tl.float32)
    chosen = tl.full([], 0, tl.int32)
    for start in range(0, count, GROUPS_AT_ONCE):
        token, x = candidates(row, groups_ptr, start, count, V, EDITED, GROUP)
        power = (x - best) * scale
        kept = (sortable(x, SHIFT) >= low.to(tl.int32)) & (power >= least)
        arrival = tl.where(kept, tl.exp2(power) / exponential(stream, token), -1.0)
        soonest = tl.max(tl.max(arrival, 1), 0)
        winner = tl.min(tl.min(tl.where(arrival == soonest, token, LARGEST), 1), 0)
        chosen = tl.where(soonest > first, winner, chosen)
        first = tl.maximum(soonest, first)
    return chosen


@triton.jit
def choose_kernel(
    logits_ptr,
    stride,
    rows_ptr,
    positions_ptr,
    reals_ptr,
    ints_ptr,
    maxima_ptr,
    masses_ptr,  # written
    groups_ptr,  # written
    floor,
    tokens_ptr,  # int64 [S]
    V: tl.constexpr,
    BLOCKS_P2: tl.constexpr,
    GROUPS_P2: tl.constexpr,
    SAMPLED: tl.constexpr,
    HAS_TOP_K: tl.constexpr,
    EDITED: tl.constexpr,
    SHIFT: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
):
    BLOCKS: tl.constexpr = (V + BLOCK - 1) // BLOCK
    GROUPS: tl.constexpr = (V + GROUP - 1) // GROUP
    entry = tl.program_id(0).to(tl.int64)
    number = tl.load(rows_ptr + entry)
    position = tl.load(positions_ptr + entry)
    ints_ptr += number * INTS
    reals_ptr += number * REALS
    row = row_of(logits_ptr + entry * stride, position, floor, reals_ptr, ints_ptr, EDITED)
    maxima_ptr += entry * BLOCKS
    masses_ptr += entry * BLOCKS
    block = tl.arange(0, BLOCKS_P2)
    maxima = tl.load(maxima_ptr + block, mask=block < BLOCKS, other=-INFINITY)
    best = tl.max(maxima, 0)
    chosen = tl.full([], -1, tl.int32)
    if (best > -INFINITY) & (best < INFINITY):
        mode = tl.full([], IS_GREEDY, tl.int64)
        if SAMPLED:
            mode = tl.load(ints_ptr + MODE)
            stream = stream_of(tl.load(ints_ptr + KEY), position)
        if mode == IS_GREEDY:
            chosen = likeliest(row, maxima, best, V, BLOCKS_P2, EDITED)
        elif HAS_TOP_K and mode == IS_TOP_K:
            groups_ptr += entry * GROUPS
            chosen = drawn_of_top_k(
                row, groups_ptr, best, stream, reals_ptr, ints_ptr, V, EDITED, SHIFT, GROUP, GROUPS_P2
            )  # fmt: skip
        elif SAMPLED:
            chosen = drawn(
                row, maxima_ptr, masses_ptr, maxima, best, stream, reals_ptr, V, BLOCKS_P2, EDITED, TILE
            )  # fmt: skip
        if EDITED:
            counts = tl.load(ints_ptr + COUNTS)
            if counts != 0:
                count_ptr = counts.to(tl.pointer_type(tl.uint16)) + chosen
                count = tl.load(count_ptr).to(tl.int32)
                tl.store(count_ptr, tl.where(count < 0xFFFE, count + 2, count).to(tl.uint16))
    tl.store(tokens_ptr + entry, chosen.to(tl.int64))


@dataclass(frozen=True, slots=True)
class Needs:
    """What some row of a batch needs: each of these is another pair of compiled kernels."""

    sampled: bool = False
    top_k: bool = False
    edited: bool = False


_ZERO_BITS = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}  # of a value that becomes float32


def group_size(vocab_size: int) -> int:
    return max(16, triton.next_power_of_2(vocab_size) // MOST_GROUPS)


def choose_warps(needs: Needs) -> int:
    """Many where a row is read again, for one row may have an SM to itself."""
    if not needs.sampled:
        return 4
    return 8 if needs.top_k else 16


def choose(
    logits_SV: Tensor,
    rows_S: Tensor,
    positions_S: Tensor,
    reals_RC: Tensor,
    ints_RC: Tensor,
    needs: Needs,
    floor: float,
) -> Tensor:
    """Tokens, int64 [S]; -1 for a row whose logits are not finite. All tensors are on one device."""
    size, vocab_size = logits_SV.shape
    assert logits_SV.stride(1) == 1 and ints_RC.shape[1] == len(Int) and reals_RC.shape[1] == len(Real)
    group = group_size(vocab_size)
    blocks, groups = triton.cdiv(vocab_size, BLOCK_SIZE), triton.cdiv(vocab_size, group)
    maxima_SB = torch.empty(size, blocks, dtype=torch.float32, device=logits_SV.device)
    masses_SB = torch.empty_like(maxima_SB)
    # Where nothing has top_k the kernels are built without it, and any pointer will do.
    groups_SC = ints_RC
    if needs.top_k:
        groups_SC = torch.empty(size, groups, dtype=torch.int32, device=logits_SV.device)
    tokens_S = torch.empty(size, dtype=torch.int64, device=logits_SV.device)
    tile = min(TILE_BLOCKS, triton.next_power_of_2(blocks))
    state = (
        logits_SV, logits_SV.stride(0), rows_S, positions_S, reals_RC, ints_RC, maxima_SB, masses_SB, groups_SC, floor,
    )  # fmt: skip
    # Without fusion of multiplications and additions both kernels, and torch, round edited logits alike.
    flags = {
        "SAMPLED": needs.sampled, "HAS_TOP_K": needs.top_k, "EDITED": needs.edited,
        "SHIFT": 0 if needs.edited else _ZERO_BITS[logits_SV.dtype], "GROUP": group, "TILE": tile,
        "enable_fp_fusion": False,
    }  # fmt: skip
    scan_kernel[(triton.cdiv(blocks, tile), size)](*state, V=vocab_size, num_warps=SCAN_WARPS, **flags)
    choose_kernel[(size,)](
        *state,
        tokens_S,
        V=vocab_size,
        BLOCKS_P2=triton.next_power_of_2(blocks),
        GROUPS_P2=triton.next_power_of_2(groups),
        num_warps=choose_warps(needs),
        **flags,
    )
    return tokens_S
