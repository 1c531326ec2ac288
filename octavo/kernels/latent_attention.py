"""Latent attention over a paged cache, in Triton: see `octavo.layers.latent` for what a latent is.

A layer's cache is [blocks, block size, D]: of each token one row for all heads, whose first RANK values are keys and
values, the other D - RANK keys only. A tile of rows is read once and used twice, by a group of heads that are the rows
of one matrix product. Decode is divided as in `octavo.kernels.paged_attention_decode`, with groups of heads in the
place of key/value heads; prefill as in `octavo.kernels.paged_attention_prefill`. The reference is
`octavo.kernels.paged_attention.reference`, with the cache as keys and as values.

Legend: T tokens, N sequences, H heads, G of a group, J groups, D = RANK + ROPE values of a row, M rows of a program.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.paged_attention import LOWEST
from octavo.kernels.paged_attention_decode import FIELDS


@triton.jit
def write_latent_kernel(
    latent_ptr, slots_ptr, cache_ptr, latent_stride_t, WIDTH: tl.constexpr, WIDTH_P2: tl.constexpr
):  # fmt: skip
    """A token's row to its slot, if it has one."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    offset = tl.arange(0, WIDTH_P2)
    inside = tl.where(slot >= 0, offset, WIDTH) < WIDTH
    tl.store(
        cache_ptr + slot * WIDTH + offset,
        tl.load(latent_ptr + token * latent_stride_t + offset, mask=inside),
        mask=inside,
    )


@triton.jit
def attend_latents(
    q_c,  # [M, RANK_P2], any queries of any heads; [M, ROPE_P2] the rest of them
    q_r,
    q_pos,  # [M] their positions
    begin,  # of the tokens to attend to, a multiple of TILE, and their end
    end,
    maximum,  # [M] of the scores seen so far; their sum; the weighted latents [M, RANK_P2]
    total,
    acc,
    table_ptr,  # of the sequence
    cache_ptr,
    scale,  # for scores of base two
    MASKED: tl.constexpr,  # not all tokens are seen by all queries, or exist
    BLOCK_SIZE: tl.constexpr,
    RANK: tl.constexpr,
    RANK_P2: tl.constexpr,
    ROPE: tl.constexpr,
    ROPE_P2: tl.constexpr,
    TILE: tl.constexpr,
):
    """Goes on with running maximum, sum and weighted latents over the tokens [begin, end)."""
    rank = tl.arange(0, RANK_P2)
    rope = tl.arange(0, ROPE_P2)
    offset = tl.arange(0, TILE)
    for start in tl.range(begin, end, TILE):
        token = start + offset
        inside = token < end
        block = tl.load(table_ptr + token // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
        row = cache_ptr + (block * BLOCK_SIZE + token % BLOCK_SIZE) * (RANK + ROPE)
        c = tl.load(row[:, None] + rank[None, :], mask=inside[:, None] & (rank[None, :] < RANK), other=0.0)
        r = tl.load(row[:, None] + RANK + rope[None, :], mask=inside[:, None] & (rope[None, :] < ROPE), other=0.0)
        scores = tl.dot(q_r, tl.trans(r), input_precision="ieee")
        scores = tl.dot(q_c, tl.trans(c), scores, input_precision="ieee")
        if MASKED:
            scores = tl.where(inside[None, :] & (token[None, :] <= q_pos[:, None]), scores, float("-inf"))
        higher = tl.maximum(maximum, tl.max(scores, 1) * scale)
        weights = tl.exp2(tl.fma(scores, scale, -higher[:, None]))
        fade = tl.exp2(maximum - higher)
        total = total * fade + tl.sum(weights, 1)
        acc = tl.dot(weights.to(c.dtype), c, acc * fade[:, None], input_precision="ieee")
        maximum = higher
    return maximum, total, acc


@triton.jit(do_not_specialize=["table_stride"])
def latent_decode_kernel(
    q_ptr,
    out_ptr,
    partial_ptr,  # [places, G, RANK] float32: weighted latents of a part divided by their sum
    weight_ptr,  # [places, G] float32: log2 of that sum
    counter_ptr,  # [N * J] int32: finished parts of a pair; zeros between launches
    units_ptr,
    table_ptr,
    cache_ptr,
    q_stride_t,
    table_stride,
    scale,
    BLOCK_SIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_P2: tl.constexpr,
    RANK: tl.constexpr,
    RANK_P2: tl.constexpr,
    ROPE: tl.constexpr,
    ROPE_P2: tl.constexpr,
    TILE: tl.constexpr,
):
    """One query a sequence. A unit is a part of a context for a group of heads."""
    unit = units_ptr + tl.program_id(0) * FIELDS
    pair = tl.load(unit)
    begin = tl.load(unit + 1)
    end = tl.load(unit + 2)
    context = tl.load(unit + 3)
    parts = tl.load(unit + 4)
    part = tl.load(unit + 5)
    place = tl.load(unit + 6)
    if pair >= 0:
        sequence = (pair // GROUPS).to(tl.int64)
        member = tl.arange(0, GROUP_P2)
        rank = tl.arange(0, RANK_P2)
        rope = tl.arange(0, ROPE_P2)
        q = q_ptr + sequence * q_stride_t + (pair % GROUPS * GROUP + member)[:, None] * (RANK + ROPE)
        of_rank = (member[:, None] < GROUP) & (rank[None, :] < RANK)
        q_c = tl.load(q + rank[None, :], mask=of_rank, other=0.0)
        q_r = tl.load(q + RANK + rope[None, :], mask=(member[:, None] < GROUP) & (rope[None, :] < ROPE), other=0.0)
        maximum, total, acc = attend_latents(
            q_c, q_r, tl.zeros([GROUP_P2], tl.int32) + context - 1, begin, end,
            tl.full([GROUP_P2], LOWEST, tl.float32), tl.zeros([GROUP_P2], tl.float32),
            tl.zeros([GROUP_P2, RANK_P2], tl.float32), table_ptr + sequence * table_stride, cache_ptr, scale,
            True, BLOCK_SIZE, RANK, RANK_P2, ROPE, ROPE_P2, TILE,
        )  # fmt: skip
        value = acc / tl.where(total > 0, total, 1.0)[:, None]
        inner = member[:, None] * RANK + rank[None, :]
        out = out_ptr + pair.to(tl.int64) * (GROUP * RANK)
        if parts == 1:
            tl.store(out + inner, value.to(out_ptr.dtype.element_ty), mask=of_rank)
        else:
            mine = (place + part).to(tl.int64)
            tl.store(partial_ptr + mine * (GROUP * RANK) + inner, value, mask=of_rank)
            tl.store(weight_ptr + mine * GROUP + member, maximum + tl.log2(total), mask=member < GROUP)
            tl.debug_barrier()  # all threads have stored before one of them says so
            done = tl.atomic_add(counter_ptr + pair, 1, sem="acq_rel")
            if done == parts - 1:
                tl.debug_barrier()
                for head in tl.range(0, GROUP):
                    _add_parts_of_head(
                        partial_ptr, weight_ptr, place, parts, head, out + head * RANK, GROUP, RANK, RANK_P2
                    )
                tl.store(counter_ptr + pair, 0)


@triton.jit
def _add_parts_of_head(
    partial_ptr, weight_ptr, place, parts, head, out_ptr,
    GROUP: tl.constexpr, RANK: tl.constexpr, RANK_P2: tl.constexpr,
):  # fmt: skip
    """Several parts at a time, so that their loads wait for memory together."""
    CHUNK: tl.constexpr = 8
    column = tl.arange(0, RANK_P2)
    maximum = tl.full([1], LOWEST, tl.float32)
    total = tl.zeros([1], tl.float32)
    acc = tl.zeros([RANK_P2], tl.float32)
    for start in tl.range(0, parts, CHUNK):
        part = start + tl.arange(0, CHUNK)
        there = part < parts
        row = ((place + part) * GROUP + head).to(tl.int64)
        # Past the first-level cache, which does not see what other processors store.
        weight = tl.load(weight_ptr + row, mask=there, other=float("-inf"), cache_modifier=".cg")
        value = tl.load(
            partial_ptr + row[:, None] * RANK + column[None, :],
            mask=there[:, None] & (column < RANK)[None, :], other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        higher = tl.maximum(maximum, tl.max(weight, 0))
        fade = tl.exp2(maximum - higher)
        share = tl.exp2(weight - higher)
        total = total * fade + tl.sum(share, 0)
        acc = acc * fade + tl.sum(value * share[:, None], 0)
        maximum = higher
    tl.store(out_ptr + column, (acc / total).to(out_ptr.dtype.element_ty), mask=column < RANK)


@triton.jit(
    do_not_specialize=["num_sequences", "table_stride"],
    do_not_specialize_on_alignment=["start_ptr", "context_ptr", "table_ptr"],
)
def latent_prefill_kernel(
    q_ptr,
    out_ptr,
    start_ptr,  # [N + 1] cumulative tokens of the sequences
    context_ptr,  # [N]
    table_ptr,
    cache_ptr,
    num_sequences,
    q_stride_t,
    table_stride,
    scale,
    BLOCK_SIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    RANK: tl.constexpr,
    RANK_P2: tl.constexpr,
    ROPE: tl.constexpr,
    ROPE_P2: tl.constexpr,
    M: tl.constexpr,
    TILE: tl.constexpr,
):
    """A program has a few tokens of one sequence and a group of heads. The last tiles, which take longest, go first."""
    TOKENS: tl.constexpr = M // GROUP
    group = tl.program_id(0)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    base = tl.load(start_ptr)
    low = 0
    high = num_sequences
    while high - low > 1:  # sequence i begins at tile start[i] // TOKENS + i or later
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
        rank = tl.arange(0, RANK_P2)
        rope = tl.arange(0, ROPE_P2)
        index = done + row // GROUP
        there = (index < count) & (row < TOKENS * GROUP)
        token = (start + index).to(tl.int64)
        head = group * GROUP + row % GROUP
        q = q_ptr + (token * q_stride_t + head * (RANK + ROPE))[:, None]
        of_rank = there[:, None] & (rank[None, :] < RANK)
        q_c = tl.load(q + rank[None, :], mask=of_rank, other=0.0)
        q_r = tl.load(q + RANK + rope[None, :], mask=there[:, None] & (rope[None, :] < ROPE), other=0.0)
        lowest = context - count + done  # position of the first query
        q_pos = context - count + index
        table_ptr += low.to(tl.int64) * table_stride
        diagonal = (lowest + 1) // TILE * TILE
        maximum, total, acc = attend_latents(
            q_c, q_r, q_pos, 0, diagonal,
            tl.full([M], LOWEST, tl.float32), tl.zeros([M], tl.float32), tl.zeros([M, RANK_P2], tl.float32),
            table_ptr, cache_ptr, scale, False, BLOCK_SIZE, RANK, RANK_P2, ROPE, ROPE_P2, TILE,
        )  # fmt: skip
        maximum, total, acc = attend_latents(
            q_c, q_r, q_pos, diagonal, tl.minimum(lowest + TOKENS, context), maximum, total, acc,
            table_ptr, cache_ptr, scale, True, BLOCK_SIZE, RANK, RANK_P2, ROPE, ROPE_P2, TILE,
        )  # fmt: skip
        value = acc / tl.where(total > 0, total, 1.0)[:, None]
        out = out_ptr + (token * (GROUPS * GROUP) + head)[:, None] * RANK + rank[None, :]
        tl.store(out, value.to(out_ptr.dtype.element_ty), mask=of_rank)
