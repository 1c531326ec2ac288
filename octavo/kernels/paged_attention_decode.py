"""Decode over a paged KV cache: one query token a sequence, its work divided evenly whatever the lengths are.

All contexts are cut into tiles of tokens, and the tiles of all key/value heads of all sequences stand in one line:
sequence by sequence, head by head. A fixed number of programs takes equal shares of that line. `plan_kernel` says
once a step where each share begins; all layers with the same window use it.

A share covers some (sequence, head) pairs whole and at most one at each end in part. Parts go to a workspace of two
places a program. Whoever finishes the last part of a pair adds them all up, so there is no second launch. The
counters of finished parts are zero again when the kernel ends.

Legend: N sequences, H query heads, K key/value heads, G = H / K, D head size, P programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.paged_attention import LOWEST, attend_tiles

# Entries of a program in the plan: sequence, its context, tiles of it to leave out, tiles to do, everyone's quota.
WORK = tl.constexpr(8)


@triton.jit
def _tiles_of(context, WINDOW: tl.constexpr, TILE: tl.constexpr):
    """(first tile, number of tiles) of a context. An empty one has a tile too, so that somebody writes its zeros."""
    first = tl.zeros_like(context)
    if WINDOW > 0:
        first = tl.maximum(context - WINDOW, 0) // TILE
    return first, tl.maximum(tl.cdiv(context, TILE) - first, 1)


@triton.jit
def plan_kernel(
    context_ptr,
    work_ptr,  # [P, WORK] int32
    num_sequences,
    WINDOW: tl.constexpr,
    KV_HEADS: tl.constexpr,
    TILE: tl.constexpr,
    SEQUENCES_P2: tl.constexpr,
):
    """Where the share of a program begins. Every program adds all lengths up for itself: none waits for another."""
    program = tl.program_id(0)
    index = tl.arange(0, SEQUENCES_P2)
    inside = index < num_sequences
    context = tl.load(context_ptr + index, mask=inside, other=0)
    _, tiles = _tiles_of(context, WINDOW, TILE)
    ends = tl.cumsum(tl.where(inside, tiles, 0), 0) * KV_HEADS
    total = tl.max(ends, 0)
    quota = tl.cdiv(total, tl.num_programs(0))
    begin = program * quota
    before = (ends <= begin) & inside
    sequence = tl.sum(before.to(tl.int32), 0)
    place = work_ptr + program * WORK
    tl.store(place, sequence)
    tl.store(place + 1, tl.sum(tl.where(index == sequence, context, 0), 0))
    tl.store(place + 2, begin - tl.max(tl.where(before, ends, 0), 0))
    tl.store(place + 3, tl.minimum(quota, total - begin))
    tl.store(place + 4, quota)


@triton.jit
def decode_kernel(
    q_ptr,
    out_ptr,
    partial_ptr,  # [2 P, G, D] float32: values of a part of a pair, divided by their sum
    weight_ptr,  # [2 P, G] float32: log2 of the sum
    counter_ptr,  # [P] int32: finished parts of the pair that this program's share begins last; zeros between launches
    work_ptr,
    context_ptr,
    table_ptr,
    key_cache_ptr,
    value_cache_ptr,
    q_stride_t,
    table_stride,
    scale,
    softcap,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_P2: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_P2: tl.constexpr,
    TILE: tl.constexpr,
):
    program = tl.program_id(0)
    work = work_ptr + program * WORK
    sequence = tl.load(work)
    context = tl.load(work + 1)
    skip = tl.load(work + 2)
    left = tl.load(work + 3)
    quota = tl.load(work + 4)
    unit = program * quota
    member = tl.arange(0, GROUP_P2)
    dim = tl.arange(0, DIM_P2)
    present = (member[:, None] < GROUP) & (dim[None, :] < HEAD_DIM)
    part_address = member[:, None] * HEAD_DIM + dim[None, :]
    while left > 0:
        first, tiles = _tiles_of(context, WINDOW, TILE)
        head = skip // tiles
        tile = skip % tiles
        count = tl.minimum(tiles - tile, left)
        address = head * (GROUP * HEAD_DIM) + part_address
        q = tl.load(q_ptr + sequence.to(tl.int64) * q_stride_t + address, mask=present, other=0.0)
        begin = (first + tile) * TILE
        maximum, total, acc = attend_tiles(
            q, tl.zeros([GROUP_P2], tl.int32) + context - 1, begin, tl.minimum(begin + count * TILE, context),
            tl.full([GROUP_P2], LOWEST, tl.float32), tl.zeros([GROUP_P2], tl.float32),
            tl.zeros([GROUP_P2, DIM_P2], tl.float32), table_ptr + sequence.to(tl.int64) * table_stride,
            key_cache_ptr + head * HEAD_DIM, value_cache_ptr + head * HEAD_DIM, scale, softcap,
            True, WINDOW, CAPPED, WIDE, BLOCK_SIZE, KV_HEADS, HEAD_DIM, DIM_P2, TILE,
        )  # fmt: skip
        value = acc / tl.where(total > 0, total, 1.0)[:, None]
        out = out_ptr + sequence.to(tl.int64) * (KV_HEADS * GROUP * HEAD_DIM) + address
        if count == tiles:
            tl.store(out, value.to(out_ptr.dtype.element_ty), mask=present)
        else:
            # A share begins in the middle of one pair at most, and ends before the end of one at most.
            place = program * 2 + (tile == 0).to(tl.int32)
            tl.store(partial_ptr + place * (GROUP * HEAD_DIM) + part_address, value, mask=present)
            tl.store(weight_ptr + place * GROUP + member, maximum + tl.log2(total), mask=member < GROUP)
            owner = (unit - tile) // quota
            last = (unit - tile + tiles - 1) // quota
            tl.debug_barrier()  # all threads have stored before one of them says so
            done = tl.atomic_add(counter_ptr + owner, 1, sem="acq_rel")
            if done == last - owner:
                tl.debug_barrier()
                _add_parts(
                    partial_ptr, weight_ptr, owner, last,
                    out_ptr + sequence.to(tl.int64) * (KV_HEADS * GROUP * HEAD_DIM) + head * (GROUP * HEAD_DIM),
                    GROUP, HEAD_DIM, DIM_P2,
                )  # fmt: skip
                tl.store(counter_ptr + owner, 0)
        unit += count
        left -= count
        skip += count
        if (skip == tiles * KV_HEADS) & (left > 0):
            skip = 0
            sequence += 1
            context = tl.load(context_ptr + sequence)


@triton.jit
def _add_parts(
    partial_ptr,
    weight_ptr,
    owner,  # the program that had the first part; the others follow it
    last,
    out_ptr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_P2: tl.constexpr,
):
    """Several parts at a time, so that their loads wait for memory together."""
    HEADS: tl.constexpr = triton.next_power_of_2(GROUP)
    PARTS: tl.constexpr = 1 if HEADS * DIM_P2 > 2048 else 4096 // (HEADS * DIM_P2)
    member = tl.arange(0, HEADS)
    dim = tl.arange(0, DIM_P2)
    maximum = tl.full([HEADS], LOWEST, tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    acc = tl.zeros([HEADS, DIM_P2], tl.float32)
    for start in tl.range(0, last + 1 - owner, PARTS):
        program = owner + start + tl.arange(0, PARTS)
        place = (program * 2 + (program == owner).to(tl.int32)) * GROUP
        heads = place[:, None] + member[None, :]
        inside = (program <= last)[:, None] & (member < GROUP)[None, :]
        # Past the first-level cache, which does not see what other processors store.
        weight = tl.load(weight_ptr + heads, mask=inside, other=float("-inf"), cache_modifier=".cg")
        value = tl.load(
            partial_ptr + heads[:, :, None] * HEAD_DIM + dim[None, None, :],
            mask=inside[:, :, None] & (dim < HEAD_DIM)[None, None, :], other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        higher = tl.maximum(maximum, tl.max(weight, 0))
        fade = tl.exp2(maximum - higher)
        share = tl.exp2(weight - higher[None, :])
        total = total * fade + tl.sum(share, 0)
        acc = acc * fade[:, None] + tl.sum(value * share[:, :, None], 0)
        maximum = higher
    present = (member < GROUP)[:, None] & (dim < HEAD_DIM)[None, :]
    out = out_ptr + member[:, None] * HEAD_DIM + dim[None, :]
    tl.store(out, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=present)
