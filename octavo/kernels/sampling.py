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
from octavo.kernels.sampling_parts import exponential, later, logits_at, sortable, stream_of
from octavo.kernels.sampling_rows import Int, Mode, Real

BLOCK_SIZE = 256  # as octavo.sampling.blocks has it: the random numbers depend on it
MOST_GROUPS = 8192  # what fits into the registers of a program
TILE_BLOCKS = 32  # of a program of `scan`: 8192 tokens, 32 a thread, all of them on their way at once
SCAN_WARPS = 8
CHOOSE_WARPS = 16  # one row may have an SM to itself

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
LARGEST = tl.constexpr(0x7FFFFFFF)


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
    row = tl.load(rows_ptr + entry)
    ints_ptr += row * INTS
    reals_ptr += row * REALS
    block = tl.program_id(0) * TILE + tl.arange(0, TILE)
    token = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    first = tl.program_id(0) * (TILE * BLOCK)
    position = tl.load(positions_ptr + entry)
    x = logits_at(
        logits_ptr + entry * stride, token, token < V, first, first + TILE * BLOCK,
        reals_ptr, ints_ptr, position, floor, EDITED,
    )  # fmt: skip
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
def block_logits(logits_ptr, block, reals_ptr, ints_ptr, position, floor, V: tl.constexpr, EDITED: tl.constexpr):
    """(ids, logits) of one block."""
    first = block * BLOCK
    token = first + tl.arange(0, BLOCK)
    x = logits_at(
        logits_ptr, token, token < V, first, first + BLOCK, reals_ptr, ints_ptr, position, floor, EDITED
    )  # fmt: skip
    return token, x


@triton.jit
def likeliest(
    logits_ptr, maxima, best, reals_ptr, ints_ptr, position, floor,
    V: tl.constexpr, BLOCKS_P2: tl.constexpr, EDITED: tl.constexpr,
):  # fmt: skip
    """The first token with the largest logit."""
    block = tl.min(tl.where(maxima == best, tl.arange(0, BLOCKS_P2), BLOCKS_P2), 0)
    token, x = block_logits(logits_ptr, block, reals_ptr, ints_ptr, position, floor, V, EDITED)
    return tl.min(tl.where(x == tl.max(x, 0), token, LARGEST), 0)


@triton.jit
def sum_likelier(
    logits_ptr, maxima_ptr, masses_ptr, best, above, scale, least, reals_ptr, ints_ptr, position, floor,
    V: tl.constexpr, EDITED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
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
            inside = hot[:, None] & (token < V)
            first = start * BLOCK
            x = logits_at(
                logits_ptr, token, inside, first, first + TILE * BLOCK, reals_ptr, ints_ptr, position, floor, EDITED
            )  # fmt: skip
            power = (x - best) * scale
            masses = tl.sum(tl.where((x > above) & (power >= least), tl.exp2(power), 0.0), 1)
        tl.store(masses_ptr + block, masses, mask=block < BLOCKS)
    tl.debug_barrier()


@triton.jit
def drawn(
    logits_ptr, maxima_ptr, masses_ptr, maxima, best, reals_ptr, ints_ptr, position, floor,
    V: tl.constexpr, BLOCKS_P2: tl.constexpr, EDITED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A token of all, of those min_p keeps, or of the nucleus: drawn again until it is in it."""
    BLOCKS: tl.constexpr = (V + BLOCK - 1) // BLOCK
    block = tl.arange(0, BLOCKS_P2)
    scale = LOG2_E / tl.load(reals_ptr + TEMPERATURE)
    top_p = tl.load(reals_ptr + TOP_P)
    min_p = tl.load(reals_ptr + MIN_P)
    least = tl.where(min_p > 0, tl.log2(tl.maximum(min_p, 1e-37)), -INFINITY)
    above = tl.full([], -INFINITY, tl.float32)
    masses = tl.load(masses_ptr + block, mask=block < BLOCKS, other=0.0) * tl.exp2((maxima - best) * scale)
    if min_p > 0:
        sum_likelier(
            logits_ptr, maxima_ptr, masses_ptr, best, above, scale, least, reals_ptr, ints_ptr, position, floor,
            V, EDITED, TILE,
        )  # fmt: skip
        masses = tl.load(masses_ptr + block, mask=block < BLOCKS, other=0.0)
    total = tl.sum(masses, 0)
    limit = top_p * total
    stream = stream_of(tl.load(ints_ptr + KEY), position)
    round_stream = stream
    turn = tl.full([], 0, tl.int32)
    chosen = tl.full([], 0, tl.int32)
    rejected = turn == 0
    while rejected:
        winner = tl.argmax(masses / exponential(round_stream, block), 0)
        token, x = block_logits(logits_ptr, winner, reals_ptr, ints_ptr, position, floor, V, EDITED)
        power = (x - best) * scale
        weights = tl.where((x > above) & (power >= least), tl.exp2(power), 0.0)
        inner = tl.arange(0, BLOCK)
        place = tl.argmax(weights / exponential(round_stream, inner + BLOCKS), 0)
        chosen = tl.min(tl.where(inner == place, token, LARGEST), 0)
        weight = tl.max(tl.where(inner == place, weights, 0.0), 0)
        # What is likelier than a token cannot reach the limit if the token's own weight exceeds the rest.
        rejected = (top_p < 1) & (weight <= total - limit)
        if rejected:
            above = tl.max(tl.where(inner == place, x, -INFINITY), 0)
            sum_likelier(
                logits_ptr, maxima_ptr, masses_ptr, best, above, scale, least, reals_ptr, ints_ptr, position, floor,
                V, EDITED, TILE,
            )  # fmt: skip
            masses = tl.load(masses_ptr + block, mask=block < BLOCKS, other=0.0)
            rejected = tl.sum(masses, 0) >= limit
            turn += 1
            round_stream = later(stream, turn)
    return chosen


@triton.jit
def choose_groups(
    groups_ptr, best, k, room, V: tl.constexpr, GROUPS_P2: tl.constexpr, SHIFT: tl.constexpr, GROUP: tl.constexpr
):
    """(how many groups may have tokens of the top k, a number that the k-th largest is not below).

    The numbers of the groups replace the maxima of all of them in memory. Of groups that are as large as the k-th, as
    many are taken as `room` has for.
    """
    GROUPS: tl.constexpr = (V + GROUP - 1) // GROUP
    group = tl.arange(0, GROUPS_P2)
    inside = group < GROUPS
    most = tl.load(groups_ptr + group, mask=inside, other=-LARGEST - 1)
    low = tl.min(tl.where(inside, most, LARGEST), 0).to(tl.int64)
    high = sortable(best, SHIFT).to(tl.int64)
    while low < high:
        middle = (low + high + 1) >> 1
        enough = tl.sum((most >= middle.to(tl.int32)).to(tl.int32), 0) >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    larger = inside & (most > low.to(tl.int32))
    equal = inside & (most == low.to(tl.int32))
    room -= tl.sum(larger.to(tl.int32), 0)
    taken = larger | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= room))
    tl.debug_barrier()
    tl.store(groups_ptr + tl.cumsum(taken.to(tl.int32), 0) - 1, group, mask=taken)
    tl.debug_barrier()
    # Each of k groups has a token as large as `low`; where there are fewer groups nothing is known.
    least = sortable(tl.full([], -INFINITY, tl.float32), SHIFT).to(tl.int64)
    return tl.sum(taken.to(tl.int32), 0), tl.where(k <= GROUPS, low, least)


@triton.jit
def some_candidates(
    logits_ptr, groups_ptr, start, count, reals_ptr, ints_ptr, position, floor,
    V: tl.constexpr, EDITED: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """(ids, logits) of the tokens of some chosen groups; -inf past the last one."""
    at = start + tl.arange(0, GROUPS_AT_ONCE)
    group = tl.load(groups_ptr + at, mask=at < count, other=0)
    token = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = (at < count)[:, None] & (token < V)
    x = logits_at(logits_ptr, token, inside, 0, V, reals_ptr, ints_ptr, position, floor, EDITED)
    return token, x


@triton.jit
def count_from(
    pivot, logits_ptr, groups_ptr, count, reals_ptr, ints_ptr, position, floor,
    V: tl.constexpr, EDITED: tl.constexpr, SHIFT: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """How many candidates are at least `pivot`."""
    number = tl.full([], 0, tl.int32)
    for start in range(0, count, GROUPS_AT_ONCE):
        _, x = some_candidates(
            logits_ptr, groups_ptr, start, count, reals_ptr, ints_ptr, position, floor, V, EDITED, GROUP
        )  # fmt: skip
        number += tl.sum(tl.sum((sortable(x, SHIFT) >= pivot.to(tl.int32)).to(tl.int32), 1), 0)
    return number


@triton.jit
def mass_from(
    pivot, logits_ptr, groups_ptr, count, best, scale, least, reals_ptr, ints_ptr, position, floor,
    V: tl.constexpr, EDITED: tl.constexpr, SHIFT: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The mass of the candidates that are at least `pivot` and that min_p keeps."""
    mass = tl.full([], 0, tl.float32)
    for start in range(0, count, GROUPS_AT_ONCE):
        _, x = some_candidates(
            logits_ptr, groups_ptr, start, count, reals_ptr, ints_ptr, position, floor, V, EDITED, GROUP
        )  # fmt: skip
        power = (x - best) * scale
        kept = (sortable(x, SHIFT) >= pivot.to(tl.int32)) & (power >= least)
        mass += tl.sum(tl.sum(tl.where(kept, tl.exp2(power), 0.0), 1), 0)
    return mass


@triton.jit
def drawn_of_top_k(
    logits_ptr, groups_ptr, best, reals_ptr, ints_ptr, position, floor,
    V: tl.constexpr, GROUPS_P2: tl.constexpr, EDITED: tl.constexpr, SHIFT: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    k = tl.load(ints_ptr + K).to(tl.int32)
    room = tl.load(ints_ptr + CANDIDATES).to(tl.int32)
    count, low = choose_groups(groups_ptr, best, k, room, V, GROUPS_P2, SHIFT, GROUP)
    scale = LOG2_E / tl.load(reals_ptr + TEMPERATURE)
    top_p = tl.load(reals_ptr + TOP_P)
    min_p = tl.load(reals_ptr + MIN_P)
    least = tl.where(min_p > 0, tl.log2(tl.maximum(min_p, 1e-37)), -INFINITY)
    largest = sortable(best, SHIFT).to(tl.int64)
    high = largest
    while low < high:  # for the k-th largest
        middle = (low + high + 1) >> 1
        number = count_from(
            middle, logits_ptr, groups_ptr, count, reals_ptr, ints_ptr, position, floor, V, EDITED, SHIFT, GROUP
        )  # fmt: skip
        low = tl.where(number >= k, middle, low)
        high = tl.where(number >= k, high, middle - 1)
    if top_p < 1:  # for the smallest with less than top_p above it
        total = mass_from(
            low, logits_ptr, groups_ptr, count, best, scale, least, reals_ptr, ints_ptr, position, floor,
            V, EDITED, SHIFT, GROUP,
        )  # fmt: skip
        high = largest
        while low < high:
            middle = (low + high) >> 1
            larger = mass_from(
                middle + 1, logits_ptr, groups_ptr, count, best, scale, least, reals_ptr, ints_ptr, position, floor,
                V, EDITED, SHIFT, GROUP,
            )  # fmt: skip
            light = larger < top_p * total
            high = tl.where(light, middle, high)
            low = tl.where(light, low, middle + 1)
    stream = stream_of(tl.load(ints_ptr + KEY), position)
    first = tl.full([], -1, tl.float32)
    chosen = tl.full([], 0, tl.int32)
    for start in range(0, count, GROUPS_AT_ONCE):
        token, x = some_candidates(
            logits_ptr, groups_ptr, start, count, reals_ptr, ints_ptr, position, floor, V, EDITED, GROUP
        )  # fmt: skip
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
    row = tl.load(rows_ptr + entry)
    position = tl.load(positions_ptr + entry)
    ints_ptr += row * INTS
    reals_ptr += row * REALS
    logits_ptr += entry * stride
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
        if mode == IS_GREEDY:
            chosen = likeliest(
                logits_ptr, maxima, best, reals_ptr, ints_ptr, position, floor, V, BLOCKS_P2, EDITED
            )  # fmt: skip
        elif HAS_TOP_K and mode == IS_TOP_K:
            chosen = drawn_of_top_k(
                logits_ptr, groups_ptr + entry * GROUPS, best, reals_ptr, ints_ptr, position, floor,
                V, GROUPS_P2, EDITED, SHIFT, GROUP,
            )  # fmt: skip
        elif SAMPLED:
            chosen = drawn(
                logits_ptr, maxima_ptr, masses_ptr, maxima, best, reals_ptr, ints_ptr, position, floor,
                V, BLOCKS_P2, EDITED, TILE,
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
    group = max(16, triton.next_power_of_2(vocab_size) // MOST_GROUPS)
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
        num_warps=CHOOSE_WARPS if needs.sampled else 4,
        **flags,
    )
    return tokens_S
