"""Decode over a paged KV cache: one query token a sequence, its work divided evenly whatever the lengths are.

Contexts are cut into parts of about the same number of tiles: a fair share of all there is to read, but never less
than what pays for adding parts up, so that short contexts stay whole. A part of one key/value head is one program's
work, and the device's own scheduler balances them. `plan_kernel` lists the parts once a step, on the device; all
layers with the same window use the list. The grid follows from the number of sequences: cutting into parts of a fair
share adds no more than TARGET of them.

Parts of a context go to a workspace. Whoever finishes the last part of a (sequence, head) pair adds them all up, so
there is no second launch; the counters of finished parts are zero again when the kernel ends.

Legend: N sequences, H query heads, K key/value heads, G = H / K, D head size, U units of work: parts of pairs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.paged_attention import LOG2E, LOWEST, attend_tiles, first_seen

# Entries of a unit in the list: pair (sequence * K + head, or -1: nothing to do), first token, end, context, number of
# parts that its pair has, which of them this is, place of the pair's first part in the workspace.
FIELDS = tl.constexpr(8)


@triton.jit(do_not_specialize=["num_sequences"])
def plan_kernel(
    context_ptr,
    units_ptr,  # [U, FIELDS] int32
    num_sequences,
    WINDOW: tl.constexpr,
    KV_HEADS: tl.constexpr,
    TILE: tl.constexpr,
    TARGET: tl.constexpr,  # parts that all contexts are cut into, about, if none is short
    LEAST: tl.constexpr,  # tiles of a part
    SEQUENCES_P2: tl.constexpr,
    UNITS: tl.constexpr,  # of a program
):
    """Every program adds all lengths up for itself: none waits for another."""
    index = tl.arange(0, SEQUENCES_P2)
    inside = index < num_sequences
    context = tl.load(context_ptr + index, mask=inside, other=0)
    first = tl.zeros_like(context)
    if WINDOW != 0:
        first = first_seen(tl.maximum(context - 1, 0), WINDOW) // TILE
    tiles = tl.cdiv(context, TILE) - first
    share = tl.maximum(tl.cdiv(tl.sum(tiles, 0) * KV_HEADS, TARGET), LEAST)
    parts = tl.where(inside, tl.maximum((tiles + share // 2) // share, 1), 0)  # rounded; an empty context has one
    ends = tl.cumsum(parts, 0) * KV_HEADS
    places = tl.where(parts > 1, parts, 0)
    places = (tl.cumsum(places, 0) - places) * KV_HEADS

    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    before = (ends[:, None] <= unit[None, :]) & inside[:, None]
    sequence = tl.sum(before.to(tl.int32), 0)
    own = index[:, None] == sequence[None, :]
    local = unit - tl.max(tl.where(before, ends[:, None], 0), 0)
    own_parts = tl.maximum(tl.sum(tl.where(own, parts[:, None], 0), 0), 1)
    own_tiles = tl.sum(tl.where(own, tiles[:, None], 0), 0)
    own_first = tl.sum(tl.where(own, first[:, None], 0), 0)
    own_context = tl.sum(tl.where(own, context[:, None], 0), 0)
    own_place = tl.sum(tl.where(own, places[:, None], 0), 0)
    head = local // own_parts
    part = local % own_parts
    begin = (own_first + part * own_tiles // own_parts) * TILE
    end = tl.minimum((own_first + (part + 1) * own_tiles // own_parts) * TILE, own_context)
    row = units_ptr + unit * FIELDS
    tl.store(row, tl.where(sequence < num_sequences, sequence * KV_HEADS + head, -1))
    tl.store(row + 1, begin)
    tl.store(row + 2, end)
    tl.store(row + 3, own_context)
    tl.store(row + 4, own_parts)
    tl.store(row + 5, part)
    tl.store(row + 6, own_place + head * own_parts)


@triton.jit(do_not_specialize=["table_stride"])
def decode_kernel(
    q_ptr,
    out_ptr,
    partial_ptr,  # [places, 2, G, D] float32: values of a part divided by their sum, and log2 of that sum for each
    counter_ptr,  # [N * K] int32: finished parts of a pair; zeros between launches
    units_ptr,
    table_ptr,
    key_cache_ptr,
    value_cache_ptr,
    scale_ptr,  # of a quantised cache
    sinks_ptr,  # [H]
    slopes_ptr,  # [H]
    q_stride_t,
    table_stride,
    scale,
    softcap,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    SLOPED: tl.constexpr,
    SCALED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_P2: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_P2: tl.constexpr,
    TILE: tl.constexpr,
):
    row = units_ptr + tl.program_id(0) * FIELDS
    pair = tl.load(row)
    begin = tl.load(row + 1)
    end = tl.load(row + 2)
    context = tl.load(row + 3)
    parts = tl.load(row + 4)
    part = tl.load(row + 5)
    place = tl.load(row + 6)
    if pair >= 0:
        sequence = (pair // KV_HEADS).to(tl.int64)
        head = pair % KV_HEADS
        member = tl.arange(0, GROUP_P2)
        dim = tl.arange(0, DIM_P2)
        present = (member[:, None] < GROUP) & (dim[None, :] < HEAD_DIM)
        inner = member[:, None] * HEAD_DIM + dim[None, :]
        q = tl.load(
            q_ptr + sequence * q_stride_t + head * (GROUP * HEAD_DIM) + inner, mask=present, other=0.0
        )  # fmt: skip
        maximum = tl.full([GROUP_P2], LOWEST, tl.float32)
        total = tl.zeros([GROUP_P2], tl.float32)
        if SINKS:  # of the first part: as if it had seen one token more, without a value
            sink = tl.load(sinks_ptr + head * GROUP + member, mask=member < GROUP, other=0.0).to(tl.float32)
            maximum = tl.where(part == 0, sink * LOG2E, maximum)
            total += tl.where(part == 0, 1.0, 0.0)
        slope = total
        if SLOPED:
            slope = tl.load(slopes_ptr + head * GROUP + member, mask=member < GROUP, other=0.0) * (LOG2E / scale)
        maximum, total, acc = attend_tiles(
            q, tl.zeros([GROUP_P2], tl.int32) + context - 1, begin, end, maximum, total,
            tl.zeros([GROUP_P2, DIM_P2], tl.float32), table_ptr + sequence * table_stride,
            key_cache_ptr + head * HEAD_DIM, value_cache_ptr + head * HEAD_DIM, scale_ptr + head * BLOCK_SIZE,
            slope, scale, softcap, True, WINDOW, CAPPED, SLOPED, SCALED, WIDE, BLOCK_SIZE, KV_HEADS, HEAD_DIM,
            DIM_P2, TILE,
        )  # fmt: skip
        value = acc / tl.where(total > 0, total, 1.0)[:, None]
        out = out_ptr + pair.to(tl.int64) * (GROUP * HEAD_DIM)
        if parts == 1:
            tl.store(out + inner, value.to(out_ptr.dtype.element_ty), mask=present)
        else:
            partial = partial_ptr + place * (2 * GROUP * HEAD_DIM)
            mine = partial + part * (2 * GROUP * HEAD_DIM) + inner
            tl.store(mine, value, mask=present)
            weight = tl.broadcast_to((maximum + tl.log2(total))[:, None], [GROUP_P2, DIM_P2])
            tl.store(mine + GROUP * HEAD_DIM, weight, mask=present)
            tl.debug_barrier()  # all threads have stored before one of them says so
            done = tl.atomic_add(counter_ptr + pair, 1, sem="acq_rel")
            if done == parts - 1:
                tl.debug_barrier()
                _add_parts(partial, parts, out, GROUP * HEAD_DIM)
                tl.store(counter_ptr + pair, 0)


@triton.jit
def _add_parts(partial_ptr, parts, out_ptr, WIDTH: tl.constexpr):
    """Several parts at a time, so that their loads wait for memory together."""
    WIDTH_P2: tl.constexpr = triton.next_power_of_2(WIDTH)
    CHUNK: tl.constexpr = 1 if WIDTH_P2 > 2048 else 4096 // WIDTH_P2
    column = tl.arange(0, WIDTH_P2)
    maximum = tl.full([WIDTH_P2], LOWEST, tl.float32)
    total = tl.zeros([WIDTH_P2], tl.float32)
    acc = tl.zeros([WIDTH_P2], tl.float32)
    for start in tl.range(0, parts, CHUNK):
        part = start + tl.arange(0, CHUNK)
        address = partial_ptr + part[:, None] * (2 * WIDTH) + column[None, :]
        present = (part < parts)[:, None] & (column < WIDTH)[None, :]
        # Past the first-level cache, which does not see what other processors store.
        value = tl.load(address, mask=present, other=0.0, cache_modifier=".cg")
        weight = tl.load(address + WIDTH, mask=present, other=float("-inf"), cache_modifier=".cg")
        higher = tl.maximum(maximum, tl.max(weight, 0))
        fade = tl.exp2(maximum - higher)
        share = tl.exp2(weight - higher[None, :])
        total = total * fade + tl.sum(share, 0)
        acc = acc * fade + tl.sum(value * share, 0)
        maximum = higher
    tl.store(out_ptr + column, (acc / total).to(out_ptr.dtype.element_ty), mask=column < WIDTH)
