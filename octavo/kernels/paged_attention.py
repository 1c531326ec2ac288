"""Attention over a paged KV cache, in Triton: what its kernels share, the write, and their reference in torch.

A layer's keys and values are [blocks, block size, K, D] each, so a token's head is D contiguous values and a tile of
tokens is gathered row by row through the block table. The query heads of a key/value head are packed as rows of one
matrix product: keys and values are read once for all of them. A quantised cache has scales [blocks, K, block size, 2],
of keys and of values, in 16 bits: kernels read both as one word, which is what can be read ahead, and multiply in
float16, to which a GPU turns bytes with the fewest instructions.

Grids depend on the number of sequences and tokens only, never on lengths, and nothing is read on the host: each
program finds its work from tensors on the device, so a launch can be captured in a CUDA graph.

Scores and sums are float32; exponents are of base two. `reference` says in torch what the kernels compute.
Legend: T tokens, N sequences, H query heads, K key/value heads, G = H / K, D head size, B blocks of a table row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels import kv_cache

# Where the running maximum begins. Not -inf: what a row has not seen has the score -inf, and -inf - -inf is no number.
LOWEST = tl.constexpr(-1e30)
LOG2E = tl.constexpr(1.4426950408889634)
LEAST_SCALE = tl.constexpr(kv_cache.LEAST_SCALE)
LIFT = tl.constexpr(64.0)  # of weights times scales, so that float16 holds both large and small ones


@triton.jit
def quantise(x, LARGEST: tl.constexpr, INTEGER: tl.constexpr):
    """As `octavo.kernels.kv_cache.quantise`, of rows; what is returned has only to be cast."""
    scale = tl.maximum(tl.max(tl.abs(x), 1) / LARGEST, LEAST_SCALE).to(tl.float16).to(tl.float32)
    quotient = tl.clamp(x / scale[:, None], -LARGEST, LARGEST)
    if INTEGER:
        quotient = tl.floor(quotient + 0.5)
    return quotient, scale


@triton.jit
def scale_place(slot, head, BLOCK_SIZE: tl.constexpr, KV_HEADS: tl.constexpr):
    """Of the scale of a slot's key; that of its value is the next."""
    return ((slot // BLOCK_SIZE * KV_HEADS + head) * BLOCK_SIZE + slot % BLOCK_SIZE) * 2


@triton.jit
def write_kv_kernel(
    k_ptr,  # [T, K, D], heads of a token side by side
    v_ptr,
    slots_ptr,
    key_cache_ptr,
    value_cache_ptr,
    scale_ptr,  # float16, if QUANTISED
    k_stride_t,
    v_stride_t,
    QUANTISED: tl.constexpr,
    LARGEST: tl.constexpr,  # finite value of the cache's type
    INTEGER: tl.constexpr,  # it has no fractions
    BLOCK_SIZE: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEADS_P2: tl.constexpr,
    DIM_P2: tl.constexpr,
):
    """A token's keys and values to its slot, if it has one."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    head = tl.arange(0, HEADS_P2)
    dim = tl.arange(0, DIM_P2)
    of_head = tl.where(slot >= 0, head, KV_HEADS) < KV_HEADS
    inside = of_head[:, None] & (dim < HEAD_DIM)[None, :]
    offset = head[:, None] * HEAD_DIM + dim[None, :]
    k = tl.load(k_ptr + token * k_stride_t + offset, mask=inside, other=0.0)
    v = tl.load(v_ptr + token * v_stride_t + offset, mask=inside, other=0.0)
    if QUANTISED:
        k, k_scale = quantise(k.to(tl.float32), LARGEST, INTEGER)
        v, v_scale = quantise(v.to(tl.float32), LARGEST, INTEGER)
        pair = scale_ptr + scale_place(slot, head, BLOCK_SIZE, KV_HEADS)
        tl.store(pair, k_scale.to(tl.float16), mask=of_head)
        tl.store(pair + 1, v_scale.to(tl.float16), mask=of_head)
    tl.store(key_cache_ptr + slot * (KV_HEADS * HEAD_DIM) + offset, k.to(key_cache_ptr.dtype.element_ty), mask=inside)
    tl.store(
        value_cache_ptr + slot * (KV_HEADS * HEAD_DIM) + offset, v.to(value_cache_ptr.dtype.element_ty), mask=inside
    )


@triton.jit
def first_seen(position, WINDOW: tl.constexpr):
    """The first token that the query at a position sees. WINDOW 0: all are seen; below: chunks of that many."""
    first = position * 0
    if WINDOW > 0:
        first = tl.maximum(position - WINDOW + 1, 0)
    if WINDOW < 0:
        first = position // (-WINDOW) * (-WINDOW)
    return first


@triton.jit
def widen(kept, dtype: tl.constexpr):
    """What a cache holds, in the type that is multiplied in."""
    if kept.dtype == tl.int8 and dtype == tl.float16:
        # A fraction of the floats from 1024 on: GPUs do two such sums in the time of half a conversion.
        bits = (kept.to(tl.uint8, bitcast=True) ^ 0x80).to(tl.uint16) | 0x6400
        return bits.to(tl.float16, bitcast=True) - 1152.0
    return kept.to(dtype)


@triton.jit
def attend_tiles(
    q,  # [M, D], any rows of queries of one key/value head
    q_pos,  # [M] their positions
    begin,  # of the tokens to attend to, a multiple of TILE, and their end
    end,
    maximum,  # [M] of the scores seen so far; their sum; the weighted values [M, D]
    total,
    acc,
    table_ptr,  # of the sequence
    key_cache_ptr,  # of the head
    value_cache_ptr,
    scale_ptr,  # of the head, if SCALED: int32, a key's scale below and a value's above
    slope,  # [M], if SLOPED: what a score, before it is scaled, loses for each token before the query
    scale,  # for scores of base two; with a soft cap: of what goes into the tanh
    softcap,  # for scores of base two
    MASKED: tl.constexpr,  # not all tokens are seen by all queries, or exist
    WINDOW: tl.constexpr,  # see first_seen
    CAPPED: tl.constexpr,
    SLOPED: tl.constexpr,
    SCALED: tl.constexpr,  # the cache is quantised
    WIDE: tl.constexpr,  # a layer's keys have 2^31 elements or more
    BLOCK_SIZE: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_P2: tl.constexpr,
    TILE: tl.constexpr,
):
    """Goes on with running maximum, sum and weighted values over the tokens [begin, end)."""
    dim = tl.arange(0, DIM_P2)
    offset = tl.arange(0, TILE)
    if SCALED:
        acc *= LIFT
        if q.dtype == tl.bfloat16:
            q = q.to(tl.float16)
    if MASKED and WINDOW != 0:  # blocks before are no longer the sequence's
        lowest = first_seen(tl.min(q_pos, 0), WINDOW)
    for start in tl.range(begin, end, TILE):
        token = start + offset
        if TILE % BLOCK_SIZE == 0:
            index = start // BLOCK_SIZE + offset // BLOCK_SIZE
            row = offset % BLOCK_SIZE
        else:
            index = token // BLOCK_SIZE
            row = token % BLOCK_SIZE
        if MASKED:
            inside = token < end
            if WINDOW != 0:
                inside = inside & (token >= lowest)
            block = tl.load(table_ptr + index, mask=inside, other=0)
        else:
            block = tl.load(table_ptr + index)
        if WIDE:
            block = block.to(tl.int64)
        slot = block * BLOCK_SIZE + row
        address = (slot * (KV_HEADS * HEAD_DIM))[:, None] + dim[None, :]
        if MASKED:
            present = inside[:, None] & (dim[None, :] < HEAD_DIM)
            k = tl.load(key_cache_ptr + address, mask=present, other=0.0)
        elif HEAD_DIM < DIM_P2:
            k = tl.load(key_cache_ptr + address, mask=dim[None, :] < HEAD_DIM, other=0.0)
        else:
            k = tl.load(key_cache_ptr + address)
        scores = tl.dot(q, tl.trans(widen(k, q.dtype)), input_precision="ieee")
        if SCALED:
            word = tl.load(
                scale_ptr + block * (KV_HEADS * BLOCK_SIZE) + row, mask=inside if MASKED else token < end, other=0
            )
            scores *= word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)[None, :]
        if SLOPED:
            scores -= slope[:, None] * (q_pos[:, None] - token[None, :]).to(tl.float32)
        if CAPPED:  # tanh(x) = 1 - 2 / (1 + e^2x)
            scores = softcap - 2 * softcap / (1 + tl.exp2(scores * scale))
        if MASKED:
            seen = inside[None, :] & (token[None, :] <= q_pos[:, None])
            if WINDOW != 0:
                seen = seen & (token[None, :] >= first_seen(q_pos, WINDOW)[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        if CAPPED:
            higher = tl.maximum(maximum, tl.max(scores, 1))
            weights = tl.exp2(scores - higher[:, None])
        else:
            higher = tl.maximum(maximum, tl.max(scores, 1) * scale)
            weights = tl.exp2(tl.fma(scores, scale, -higher[:, None]))
        fade = tl.exp2(maximum - higher)
        total = total * fade + tl.sum(weights, 1)
        if MASKED:
            v = tl.load(value_cache_ptr + address, mask=present, other=0.0)
        elif HEAD_DIM < DIM_P2:
            v = tl.load(value_cache_ptr + address, mask=dim[None, :] < HEAD_DIM, other=0.0)
        else:
            v = tl.load(value_cache_ptr + address)
        if SCALED:
            v_scale = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True)
            weights *= (v_scale.to(tl.float32) * LIFT)[None, :]
        acc = tl.dot(weights.to(q.dtype), widen(v, q.dtype), acc * fade[:, None], input_precision="ieee")
        maximum = higher
    if SCALED:
        acc *= 1 / LIFT
    return maximum, total, acc


def reference(
    q_THD: Tensor,
    keys: Tensor,
    values: Tensor,
    query_start_N1: Tensor,
    context_N: Tensor,
    table_NB: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
    slopes_H: Tensor | None = None,
    chunked: bool = False,
) -> Tensor:
    """What prefill and decode compute, in float64, a sequence at a time. `keys` and `values`: [blocks, size, K, D].

    A context of 0 gives zeros.
    """
    out_THD = torch.empty(q_THD.shape, dtype=torch.float64, device=q_THD.device)
    size, group = keys.shape[1], q_THD.shape[1] // keys.shape[2]
    starts = query_start_N1.tolist()
    for i, context in enumerate(context_N.tolist()):
        if context == 0:
            out_THD[starts[i] : starts[i + 1]] = 0
            continue
        position_L = torch.arange(context, device=q_THD.device)
        block_L, offset_L = table_NB[i, position_L // size].long(), position_L % size
        k_LHD = keys[block_L, offset_L].double().repeat_interleave(group, 1)
        v_LHD = values[block_L, offset_L].double().repeat_interleave(group, 1)
        q_QHD = q_THD[starts[i] : starts[i + 1]].double()
        q_pos_Q = context - len(q_QHD) + torch.arange(len(q_QHD), device=q_THD.device)
        scores_HQL = torch.einsum("qhd,lhd->hql", q_QHD, k_LHD) * scale
        if softcap is not None:
            scores_HQL = softcap * torch.tanh(scores_HQL / softcap)
        if slopes_H is not None:
            scores_HQL -= slopes_H.double()[:, None, None] * (q_pos_Q[:, None] - position_L)
        seen_QL = position_L <= q_pos_Q[:, None]
        if window is not None:
            first_Q = q_pos_Q // window * window if chunked else q_pos_Q - window + 1
            seen_QL &= position_L >= first_Q[:, None]
        scores_HQL.masked_fill_(~seen_QL, float("-inf"))
        if sinks_H is not None:
            sinks_HQ1 = sinks_H.double()[:, None, None].expand(*scores_HQL.shape[:2], 1)
            scores_HQL = torch.cat((scores_HQL, sinks_HQ1), -1)
        weights_HQL = scores_HQL.softmax(-1)[..., :context]
        out_THD[starts[i] : starts[i + 1]] = torch.einsum("hql,lhd->qhd", weights_HQL, v_LHD)
    return out_THD
