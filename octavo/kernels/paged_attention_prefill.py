"""Prefill over a paged KV cache: chunks of any number of sequences, each after whatever prefix it has in the cache.

A program has a few tokens of one sequence and one key/value head. Tiles of tokens that all of its queries see are
computed without any mask; only those on the diagonal, and at the lower edge of a window, are masked.

Legend: T tokens, N sequences, H query heads, K key/value heads, G = H / K, D head size, M rows of a program.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.paged_attention import LOG2E, LOWEST, attend_tiles, first_seen


@triton.jit(
    do_not_specialize=["num_sequences", "table_stride"],
    do_not_specialize_on_alignment=["start_ptr", "context_ptr", "table_ptr"],
)
def prefill_kernel(
    q_ptr,
    out_ptr,
    start_ptr,  # [N + 1] cumulative tokens of the sequences
    context_ptr,  # [N]
    table_ptr,
    key_cache_ptr,
    value_cache_ptr,
    scale_ptr,  # of a quantised cache
    sinks_ptr,  # [H]
    slopes_ptr,  # [H]
    num_sequences,
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
    HEAD_DIM: tl.constexpr,
    DIM_P2: tl.constexpr,
    M: tl.constexpr,
    TILE: tl.constexpr,
):
    """Sequence i begins at tile start[i] // TOKENS + i of the queries or later, so their number needs no lengths,

    and the sequence of a tile is found by bisection. Last tiles come first: they have the most to do.
    """
    TOKENS: tl.constexpr = M // GROUP
    head = tl.program_id(0)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    base = tl.load(start_ptr)
    low = 0
    high = num_sequences
    while high - low > 1:
        middle = (low + high) // 2
        begins = (tl.load(start_ptr + middle) - base) // TOKENS + middle
        if begins <= tile:
            low = middle
        else:
            high = middle
    start = tl.load(start_ptr + low)
    count = tl.load(start_ptr + low + 1) - start
    context = tl.load(context_ptr + low)
    done = (tile - ((start - base) // TOKENS + low)) * TOKENS
    if done < count:
        row = tl.arange(0, M)
        index = done + row // GROUP
        dim = tl.arange(0, DIM_P2)
        rows = (index < count) & (row < TOKENS * GROUP)
        present = rows[:, None] & (dim[None, :] < HEAD_DIM)
        token = (start + index).to(tl.int64)
        column = (head * GROUP + row % GROUP)[:, None] * HEAD_DIM + dim[None, :]
        q = tl.load(q_ptr + token[:, None] * q_stride_t + column, mask=present, other=0.0)
        lowest = context - count + done  # position of the first query
        q_pos = context - count + index
        end = tl.minimum(lowest + TOKENS, context)
        table_ptr += low.to(tl.int64) * table_stride
        key_cache_ptr += head * HEAD_DIM
        value_cache_ptr += head * HEAD_DIM
        scale_ptr += head * BLOCK_SIZE
        maximum = tl.full([M], LOWEST, tl.float32)
        total = tl.zeros([M], tl.float32)
        if SINKS:  # as if each row had seen one token more, without a value
            sink = tl.load(sinks_ptr + head * GROUP + row % GROUP).to(tl.float32)
            maximum = sink * LOG2E
            total += 1.0
        slope = total
        if SLOPED:
            slope = tl.load(slopes_ptr + head * GROUP + row % GROUP) * (LOG2E / scale)
        acc = tl.zeros([M, DIM_P2], tl.float32)
        seen = 0
        if WINDOW != 0:
            begin = first_seen(lowest, WINDOW) // TILE * TILE
            seen = tl.minimum(tl.cdiv(first_seen(end - 1, WINDOW), TILE) * TILE, end)
            maximum, total, acc = attend_tiles(
                q, q_pos, begin, seen, maximum, total, acc, table_ptr, key_cache_ptr, value_cache_ptr, scale_ptr,
                slope, scale, softcap, True, WINDOW, CAPPED, SLOPED, SCALED, WIDE, BLOCK_SIZE,
                KV_HEADS, HEAD_DIM, DIM_P2, TILE,
            )  # fmt: skip
        diagonal = tl.maximum((lowest + 1) // TILE * TILE, seen)
        maximum, total, acc = attend_tiles(
            q, q_pos, seen, diagonal, maximum, total, acc, table_ptr, key_cache_ptr, value_cache_ptr, scale_ptr,
            slope, scale, softcap, False, WINDOW, CAPPED, SLOPED, SCALED, WIDE, BLOCK_SIZE,
            KV_HEADS, HEAD_DIM, DIM_P2, TILE,
        )  # fmt: skip
        maximum, total, acc = attend_tiles(
            q, q_pos, diagonal, end, maximum, total, acc, table_ptr, key_cache_ptr, value_cache_ptr, scale_ptr,
            slope, scale, softcap, True, WINDOW, CAPPED, SLOPED, SCALED, WIDE, BLOCK_SIZE,
            KV_HEADS, HEAD_DIM, DIM_P2, TILE,
        )  # fmt: skip
        value = acc / tl.where(total > 0, total, 1.0)[:, None]
        out = out_ptr + token[:, None] * (KV_HEADS * GROUP * HEAD_DIM) + column
        tl.store(out, value.to(out_ptr.dtype.element_ty), mask=present)
