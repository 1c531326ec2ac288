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
from torch import Tensor

from octavo.kernels.chain import chain
from octavo.kernels.paged_attention import LOWEST
from octavo.kernels.paged_attention_decode import FIELDS

HEADS_PER_PROGRAM = 16  # of turn_and_write


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
def turned(
    start, stride, row, table_ptr, present, ROPE: tl.constexpr, ROPE_P2: tl.constexpr, INTERLEAVED: tl.constexpr
):
    """Rows of ROPE values, turned by a row of cosines and signed sines as octavo.layers.rope has them."""
    HALF: tl.constexpr = ROPE // 2
    dim = tl.arange(0, ROPE_P2)
    partner = dim ^ 1 if INTERLEAVED else tl.where(dim < HALF, dim + HALF, dim - HALF)
    base = start + row[:, None] * stride
    inside = present[:, None] & (dim[None, :] < ROPE)
    x = tl.load(base + dim[None, :], mask=inside, other=0.0).to(tl.float32)
    swapped = tl.load(base + partner[None, :], mask=inside, other=0.0).to(tl.float32)
    cos = tl.load(table_ptr + dim, mask=dim < ROPE, other=0.0).to(tl.float32)
    sin = tl.load(table_ptr + ROPE + dim, mask=dim < ROPE, other=0.0).to(tl.float32)
    return x * cos[None, :] + swapped * sin[None, :], inside


@triton.jit
def turn_and_write_kernel(
    q_ptr,  # [T, H, NOPE + ROPE], rows `q_stride_t` apart
    latent_ptr,  # [T, RANK + ROPE] likewise
    q_out_ptr,  # [T, H, RANK + ROPE], of which only what is turned is written
    cache_ptr,
    weight_ptr,  # of the latents' norm
    table_ptr,  # [P, 2 ROPE]
    positions_ptr,
    slots_ptr,
    q_stride_t,
    latent_stride_t,
    eps,
    HEADS: tl.constexpr,
    NOPE: tl.constexpr,
    RANK: tl.constexpr,
    RANK_P2: tl.constexpr,
    ROPE: tl.constexpr,
    ROPE_P2: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK: tl.constexpr,  # heads of a program
    CHAINED: tl.constexpr,  # see octavo.kernels.elementwise
):
    """A program a token and a few of its heads; one for its latent, which is normed, turned and put in its slot."""
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    angles = table_ptr + tl.load(positions_ptr + token) * (2 * ROPE)
    rope = tl.arange(0, ROPE_P2)
    if tl.program_id(1) < tl.num_programs(1) - 1:
        head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        start = q_ptr + token * q_stride_t + NOPE
        x, inside = turned(start, NOPE + ROPE, head, angles, head < HEADS, ROPE, ROPE_P2, INTERLEAVED)
        out = q_out_ptr + (token * HEADS + head)[:, None] * (RANK + ROPE) + RANK + rope[None, :]
        tl.store(out, x.to(q_out_ptr.dtype.element_ty), mask=inside)
    else:
        kind = latent_ptr.dtype.element_ty
        rank = tl.arange(0, RANK_P2)
        latent = latent_ptr + token * latent_stride_t
        c = tl.load(latent + rank, mask=rank < RANK, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + rank, mask=rank < RANK, other=0.0).to(tl.float32)
        normed = (c * tl.rsqrt(tl.sum(c * c, 0) / RANK + eps)).to(kind).to(tl.float32) * weight
        one = tl.zeros([1], tl.int32)
        rest, of_rope = turned(latent + RANK, 0, one, angles, one == 0, ROPE, ROPE_P2, INTERLEAVED)
        slot = tl.load(slots_ptr + token + tl.zeros([1], tl.int64))  # a row: the interpreter wants one
        there = tl.where(slot >= 0, rank, RANK) < RANK
        row = cache_ptr + slot * (RANK + ROPE)
        tl.store(row + rank, normed.to(kind), mask=there)
        tl.store(row[:, None] + RANK + rope[None, :], rest.to(kind), mask=of_rope & (slot >= 0)[:, None])


def turn_and_write(
    q_THX: Tensor,
    latent_TD: Tensor,
    cache: Tensor,
    rope: tuple[Tensor, bool],
    positions_T: Tensor,
    slots_T: Tensor,
    norm: tuple[Tensor, float],
) -> Tensor:
    """Queries [T, H, D], of which only the turned part is there yet. Latents, normed and turned, go to the cache.

    `rope` is (cosines and signed sines [P, 1, 2 ROPE], whether pairs are neighbours), `norm` (weights [RANK], epsilon).
    The reference is what `octavo.layers.latent` does in torch.
    """
    table, interleaved = rope
    weight, eps = norm
    tokens, heads, width = q_THX.shape
    rank = len(weight)
    rope_dim = latent_TD.shape[1] - rank
    q_THD = q_THX.new_empty(tokens, heads, rank + rope_dim)
    block = min(HEADS_PER_PROGRAM, triton.next_power_of_2(heads))
    turn_and_write_kernel[(tokens, triton.cdiv(heads, block) + 1)](
        q_THX,
        latent_TD,
        q_THD,
        cache,
        weight,
        table,
        positions_T,
        slots_T,
        q_THX.stride(0),
        latent_TD.stride(0),
        eps,
        HEADS=heads,
        NOPE=width - rope_dim,
        RANK=rank,
        RANK_P2=triton.next_power_of_2(rank),
        ROPE=rope_dim,
        ROPE_P2=triton.next_power_of_2(rope_dim),
        INTERLEAVED=interleaved,
        BLOCK=block,
        num_warps=4,
        **chain(q_THX.device),
    )
    return q_THD


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
