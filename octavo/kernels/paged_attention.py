"""Attention over a paged KV cache, in Triton: write, prefill, split decode and its reduction.

A layer's keys and values are [blocks, block size, K, D] each, so a token's head is D contiguous values and a tile of
tokens is gathered row by row through the block table. The query heads of a key/value head are packed as rows of one
matrix product: keys and values are read once for all of them.

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


@triton.jit
def write_kv_kernel(
    k_ptr,
    v_ptr,
    slots_ptr,
    key_cache_ptr,
    value_cache_ptr,
    k_stride_t,
    v_stride_t,
    WIDTH: tl.constexpr,  # K * D
    WIDTH_P2: tl.constexpr,
):
    """A token's keys and values to its slot, if it has one."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    offset = tl.arange(0, WIDTH_P2)
    inside = tl.where(slot >= 0, offset, WIDTH) < WIDTH
    k = tl.load(k_ptr + token * k_stride_t + offset, mask=inside)
    v = tl.load(v_ptr + token * v_stride_t + offset, mask=inside)
    tl.store(key_cache_ptr + slot * WIDTH + offset, k, mask=inside)
    tl.store(value_cache_ptr + slot * WIDTH + offset, v, mask=inside)


@triton.jit
def _attend(
    q,  # [M, D], any rows of queries of one key/value head
    q_pos,  # [M] their positions
    begin,  # first and last + 1 of the tokens to attend to
    end,
    table_ptr,  # of the sequence
    key_cache_ptr,
    value_cache_ptr,
    head,
    scale,
    WINDOW: tl.constexpr,  # 0: all tokens up to the query's own
    BLOCK_SIZE: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_P2: tl.constexpr,
    M: tl.constexpr,
    TILE: tl.constexpr,
):
    """Running maximum, sum and weighted values of the queries over the tokens [begin, end)."""
    dim = tl.arange(0, DIM_P2)
    maximum = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, DIM_P2], tl.float32)
    for start in tl.range(begin, end, TILE):
        token = start + tl.arange(0, TILE)
        inside = token < end
        block = tl.load(table_ptr + token // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
        row = (block * BLOCK_SIZE + token % BLOCK_SIZE) * KV_HEADS + head
        address = row[:, None] * HEAD_DIM + dim[None, :]
        present = inside[:, None] & (dim[None, :] < HEAD_DIM)
        k = tl.load(key_cache_ptr + address, mask=present, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        seen = inside[None, :] & (token[None, :] <= q_pos[:, None])
        if WINDOW > 0:
            seen = seen & (token[None, :] > q_pos[:, None] - WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(maximum, tl.max(scores, 1))
        # A row that has seen nothing yet has the maximum -inf, and -inf - -inf is no number.
        pivot = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - pivot[:, None])
        fade = tl.exp2(maximum - pivot)
        total = total * fade + tl.sum(weights, 1)
        v = tl.load(value_cache_ptr + address, mask=present, other=0.0)
        acc = acc * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        maximum = higher
    return maximum, total, acc


@triton.jit
def decode_kernel(
    q_ptr,
    out_ptr,
    partial_ptr,  # [N, H, SPLITS, D] float32: values of each split, divided by their sum
    weight_ptr,  # [N, H, SPLITS] float32: log2 of the sum
    context_ptr,
    table_ptr,
    key_cache_ptr,
    value_cache_ptr,
    q_stride_t,
    table_stride,
    scale_log2e,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_P2: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_P2: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
):
    """One token of one sequence, one key/value head, one of the parts that its context is cut into."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    split = tl.program_id(2)
    context = tl.load(context_ptr + sequence)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(context - WINDOW, 0)
    part = tl.cdiv(tl.cdiv(context - first, SPLITS), TILE) * TILE
    begin = first + split * part
    end = tl.minimum(begin + part, context)
    member = tl.arange(0, GROUP_P2)
    dim = tl.arange(0, DIM_P2)
    heads = head * GROUP + member
    present = (member[:, None] < GROUP) & (dim[None, :] < HEAD_DIM)
    address = heads[:, None] * HEAD_DIM + dim[None, :]
    q = tl.load(q_ptr + sequence * q_stride_t + address, mask=present, other=0.0)
    q_pos = tl.zeros([GROUP_P2], tl.int32) + context - 1
    maximum, total, acc = _attend(
        q, q_pos, begin, end, table_ptr + sequence * table_stride, key_cache_ptr, value_cache_ptr, head, scale_log2e,
        WINDOW, BLOCK_SIZE, KV_HEADS, HEAD_DIM, DIM_P2, GROUP_P2, TILE,
    )  # fmt: skip
    value = acc / tl.where(total > 0, total, 1.0)[:, None]
    if SPLITS == 1:
        out = out_ptr + sequence * (KV_HEADS * GROUP * HEAD_DIM) + address
        tl.store(out, value.to(out_ptr.dtype.element_ty), mask=present)
    else:
        place = (sequence * (KV_HEADS * GROUP) + heads) * SPLITS + split
        tl.store(partial_ptr + place[:, None] * HEAD_DIM + dim[None, :], value, mask=present)
        # log2(0) is -inf: a part without tokens weighs nothing.
        tl.store(weight_ptr + place, maximum + tl.log2(total), mask=member < GROUP)


@triton.jit
def reduce_kernel(
    partial_ptr,
    weight_ptr,
    out_ptr,
    HEAD_DIM: tl.constexpr,
    DIM_P2: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLITS_P2: tl.constexpr,
):
    """Puts the parts of one head of one sequence together."""
    place = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS_P2)
    dim = tl.arange(0, DIM_P2)
    inside = split < SPLITS
    weight = tl.load(weight_ptr + place * SPLITS + split, mask=inside, other=float("-inf"))
    share = tl.exp2(weight - tl.max(weight, 0))
    present = inside[:, None] & (dim[None, :] < HEAD_DIM)
    part = tl.load(partial_ptr + (place * SPLITS + split[:, None]) * HEAD_DIM + dim[None, :], mask=present, other=0.0)
    value = tl.sum(part * share[:, None], 0) / tl.sum(share, 0)
    tl.store(out_ptr + place * HEAD_DIM + dim, value.to(out_ptr.dtype.element_ty), mask=dim < HEAD_DIM)


@triton.jit
def prefill_kernel(
    q_ptr,
    out_ptr,
    start_ptr,  # [N + 1] cumulative tokens of the sequences
    context_ptr,  # [N]
    table_ptr,
    key_cache_ptr,
    value_cache_ptr,
    num_sequences,
    q_stride_t,
    table_stride,
    scale_log2e,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_P2: tl.constexpr,
    M: tl.constexpr,
    TILE: tl.constexpr,
):
    """A few tokens of one sequence, one key/value head. Sequence i begins at program start[i] // TOKENS + i or later,

    so the number of programs needs no lengths, and the sequence of a program is found by bisection.
    """
    TOKENS: tl.constexpr = M // GROUP
    program = tl.program_id(0)
    head = tl.program_id(1)
    base = tl.load(start_ptr)
    low = 0
    high = num_sequences
    while high - low > 1:
        middle = (low + high) // 2
        begins = (tl.load(start_ptr + middle) - base) // TOKENS + middle
        if begins <= program:
            low = middle
        else:
            high = middle
    sequence = low.to(tl.int64)
    start = tl.load(start_ptr + sequence)
    count = tl.load(start_ptr + sequence + 1) - start
    context = tl.load(context_ptr + sequence)
    done = (program - ((start - base) // TOKENS + low)) * TOKENS
    if done < count:
        row = tl.arange(0, M)
        index = done + row // GROUP
        member = row % GROUP
        dim = tl.arange(0, DIM_P2)
        rows = (index < count) & (row < TOKENS * GROUP)
        present = rows[:, None] & (dim[None, :] < HEAD_DIM)
        token = (start + index).to(tl.int64)
        column = (head * GROUP + member)[:, None] * HEAD_DIM + dim[None, :]
        q = tl.load(q_ptr + token[:, None] * q_stride_t + column, mask=present, other=0.0)
        q_pos = context - count + index
        end = tl.minimum(context - count + done + TOKENS, context)
        begin = 0
        if WINDOW > 0:
            begin = tl.maximum(context - count + done - WINDOW + 1, 0) // TILE * TILE
        maximum, total, acc = _attend(
            q, q_pos, begin, end, table_ptr + sequence * table_stride, key_cache_ptr, value_cache_ptr, head,
            scale_log2e, WINDOW, BLOCK_SIZE, KV_HEADS, HEAD_DIM, DIM_P2, M, TILE,
        )  # fmt: skip
        value = acc / tl.where(total > 0, total, 1.0)[:, None]
        out = out_ptr + token[:, None] * (KV_HEADS * GROUP * HEAD_DIM) + column
        tl.store(out, value.to(out_ptr.dtype.element_ty), mask=present)


def reference(
    q_THD: Tensor,
    keys: Tensor,
    values: Tensor,
    query_start_N1: Tensor,
    context_N: Tensor,
    table_NB: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    """What prefill and decode compute, in float64, a sequence at a time. `keys` and `values`: [blocks, size, K, D]."""
    out_THD = torch.empty(q_THD.shape, dtype=torch.float64, device=q_THD.device)
    size, group = keys.shape[1], q_THD.shape[1] // keys.shape[2]
    starts = query_start_N1.tolist()
    for i, context in enumerate(context_N.tolist()):
        position_L = torch.arange(context, device=q_THD.device)
        block_L, offset_L = table_NB[i, position_L // size].long(), position_L % size
        k_LHD = keys[block_L, offset_L].double().repeat_interleave(group, 1)
        v_LHD = values[block_L, offset_L].double().repeat_interleave(group, 1)
        q_QHD = q_THD[starts[i] : starts[i + 1]].double()
        q_pos_Q = context - len(q_QHD) + torch.arange(len(q_QHD), device=q_THD.device)
        scores_HQL = torch.einsum("qhd,lhd->hql", q_QHD, k_LHD) * scale
        seen_QL = position_L <= q_pos_Q[:, None]
        if window is not None:
            seen_QL &= position_L > q_pos_Q[:, None] - window
        scores_HQL.masked_fill_(~seen_QL, float("-inf"))
        out_THD[starts[i] : starts[i + 1]] = torch.einsum("hql,lhd->qhd", scores_HQL.softmax(-1), v_LHD)
    return out_THD
