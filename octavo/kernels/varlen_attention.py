"""Attention over whole prompts that lie one after the other, in Triton: no cache, so keys and values are read where the
projections have left them.

A program has rows of one sequence and one key/value head: a few tokens, with all query heads of that head. Tiles that
every row sees are computed without a mask; only the diagonal, the ends of a window and a last tile are masked. Causal
or not, with windows to one side or both. Grids depend on the numbers of sequences and tokens only.

Scores and sums are float32; exponents are of base two. `reference` says in torch what the kernel computes.
Legend: T tokens, N sequences, H query heads, K key/value heads, G = H / K, D head size, M rows of a program.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.paged_attention import LOG2E, LOWEST

ROWS = 64  # of a program, 128 where heads are small
TILE = 64  # tokens of keys at a time


@triton.jit
def attend_tiles(
    q,  # [M, D], rows of queries of one key/value head
    q_pos,  # [M] their positions
    begin,  # of the tokens to attend to, and their end
    end,
    maximum,  # [M] of the scores seen so far; their sum; the weighted values [M, D]
    total,
    acc,
    k_ptr,  # of the sequence's first token and the head
    v_ptr,
    k_stride_t,
    v_stride_t,
    scale,  # for scores of base two; with a soft cap: of what goes into the tanh
    softcap,  # for scores of base two
    MASKED: tl.constexpr,  # not all tokens are seen by all queries, or exist
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_P2: tl.constexpr,
    TILE: tl.constexpr,
):
    """Goes on with running maximum, sum and weighted values over the tokens [begin, end)."""
    dim = tl.arange(0, DIM_P2)
    offset = tl.arange(0, TILE)
    for start in tl.range(begin, end, TILE):
        token = start + offset
        present = (token < end)[:, None] & (dim < HEAD_DIM)[None, :]
        row = token.to(tl.int64)[:, None]
        k = tl.load(k_ptr + row * k_stride_t + dim[None, :], mask=present, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if CAPPED:  # tanh(x) = 1 - 2 / (1 + e^2x)
            scores = softcap - 2 * softcap / (1 + tl.exp2(scores * scale))
        else:
            scores *= scale
        if MASKED:
            seen = (token < end)[None, :]
            if CAUSAL:
                seen = seen & (token[None, :] <= q_pos[:, None])
            if WINDOW > 0:
                seen = seen & (token[None, :] > q_pos[:, None] - WINDOW)
                if not CAUSAL:
                    seen = seen & (token[None, :] < q_pos[:, None] + WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(maximum, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(maximum - higher)
        total = total * fade + tl.sum(weights, 1)
        v = tl.load(v_ptr + row * v_stride_t + dim[None, :], mask=present, other=0.0)
        acc = tl.dot(weights.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
        maximum = higher
    return maximum, total, acc


@triton.jit(do_not_specialize=["num_sequences"], do_not_specialize_on_alignment=["start_ptr"])
def varlen_kernel(
    q_ptr,  # [T, H, D], heads of a token side by side
    k_ptr,
    v_ptr,
    out_ptr,
    start_ptr,  # [N + 1] cumulative tokens of the sequences
    num_sequences,
    q_stride_t,
    k_stride_t,
    v_stride_t,
    scale,
    softcap,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: none
    CAPPED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_P2: tl.constexpr,
    M: tl.constexpr,
    TILE: tl.constexpr,
):
    """Sequence i begins at tile start[i] // TOKENS + i of the queries or later, so their number needs no lengths,

    and the sequence of a tile is found by bisection. Last tiles come first: with causal attention they have most to do.
    """
    TOKENS: tl.constexpr = M // GROUP
    head = tl.program_id(0)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    low = 0
    high = num_sequences
    while high - low > 1:
        middle = (low + high) // 2
        begins = tl.load(start_ptr + middle) // TOKENS + middle
        if begins <= tile:
            low = middle
        else:
            high = middle
    start = tl.load(start_ptr + low)
    length = (tl.load(start_ptr + low + 1) - start).to(tl.int32)
    done = ((tile - (start // TOKENS + low)) * TOKENS).to(tl.int32)
    if done < length:
        row = tl.arange(0, M)
        q_pos = done + row // GROUP
        dim = tl.arange(0, DIM_P2)
        rows = (q_pos < length) & (row < TOKENS * GROUP)
        present = rows[:, None] & (dim[None, :] < HEAD_DIM)
        token = (start + q_pos).to(tl.int64)
        column = (head * GROUP + row % GROUP)[:, None] * HEAD_DIM + dim[None, :]
        q = tl.load(q_ptr + token[:, None] * q_stride_t + column, mask=present, other=0.0)
        base = start.to(tl.int64)
        k_ptr += base * k_stride_t + head * HEAD_DIM
        v_ptr += base * v_stride_t + head * HEAD_DIM
        first = done  # positions of the rows' first and last token
        last = tl.minimum(done + TOKENS, length) - 1
        # [begin, end) is what any row sees, [full, whole) of it what all rows see.
        begin = 0
        full = 0
        end = length
        whole = length // TILE * TILE
        if CAUSAL:
            end = last + 1
            whole = (first + 1) // TILE * TILE
        if WINDOW > 0:
            begin = tl.maximum(first - WINDOW + 1, 0) // TILE * TILE
            full = tl.cdiv(tl.maximum(last - WINDOW + 1, 0), TILE) * TILE
            if not CAUSAL:
                end = tl.minimum(last + WINDOW, length)
                whole = tl.minimum(whole, (first + WINDOW) // TILE * TILE)
        full = tl.minimum(full, end)
        whole = tl.maximum(whole, full)
        maximum = tl.full([M], LOWEST, tl.float32)
        total = tl.zeros([M], tl.float32)
        acc = tl.zeros([M, DIM_P2], tl.float32)
        if WINDOW > 0:
            maximum, total, acc = attend_tiles(
                q, q_pos, begin, full, maximum, total, acc, k_ptr, v_ptr, k_stride_t, v_stride_t, scale, softcap,
                True, CAUSAL, WINDOW, CAPPED, HEAD_DIM, DIM_P2, TILE,
            )  # fmt: skip
        maximum, total, acc = attend_tiles(
            q, q_pos, full, whole, maximum, total, acc, k_ptr, v_ptr, k_stride_t, v_stride_t, scale, softcap,
            False, CAUSAL, WINDOW, CAPPED, HEAD_DIM, DIM_P2, TILE,
        )  # fmt: skip
        maximum, total, acc = attend_tiles(
            q, q_pos, whole, end, maximum, total, acc, k_ptr, v_ptr, k_stride_t, v_stride_t, scale, softcap,
            True, CAUSAL, WINDOW, CAPPED, HEAD_DIM, DIM_P2, TILE,
        )  # fmt: skip
        value = acc / tl.where(total > 0, total, 1.0)[:, None]
        out = out_ptr + token[:, None] * (KV_HEADS * GROUP * HEAD_DIM) + column
        tl.store(out, value.to(out_ptr.dtype.element_ty), mask=present)


def varlen_attention(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    start_N1: Tensor,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of every sequence to itself, as [T, H * D]; sequence i owns the tokens [start[i], start[i + 1])."""
    tokens, heads, dim = q_THD.shape
    kv_heads = k_TKD.shape[1]
    group = heads // kv_heads
    rows = max(triton.next_power_of_2(group), 2 * ROWS if dim <= 64 and q_THD.dtype != torch.float32 else ROWS)
    sequences = len(start_N1) - 1
    out_TX = torch.empty(tokens, heads * dim, dtype=q_THD.dtype, device=q_THD.device)
    log2e = LOG2E.value
    factor = scale * log2e if softcap is None else 2 * log2e * scale / softcap
    grid = (kv_heads, tokens // (rows // group) + sequences)
    varlen_kernel[grid](
        q_THD, k_TKD, v_TKD, out_TX, start_N1, sequences, q_THD.stride(0), k_TKD.stride(0), v_TKD.stride(0),
        factor, 0.0 if softcap is None else softcap * log2e,
        CAUSAL=causal, WINDOW=window or 0, CAPPED=softcap is not None, KV_HEADS=kv_heads, GROUP=group, HEAD_DIM=dim,
        DIM_P2=max(16, triton.next_power_of_2(dim)), M=rows, TILE=TILE if dim <= 128 else TILE // 2,
        num_warps=4 if rows <= 64 else 8, num_stages=2,
    )  # fmt: skip
    return out_TX


def reference(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    start_N1: Tensor,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None = None,
) -> Tensor:
    """What the kernel computes, in float64, a sequence at a time, as [T, H, D]."""
    group = q_THD.shape[1] // k_TKD.shape[1]
    out_THD = torch.empty(q_THD.shape, dtype=torch.float64, device=q_THD.device)
    starts = start_N1.tolist()
    for start, end in zip(starts, starts[1:], strict=False):
        q, k, v = (x[start:end].double() for x in (q_THD, k_TKD, v_TKD))
        scores_HQL = torch.einsum("qhd,lhd->hql", q, k.repeat_interleave(group, 1)) * scale
        if softcap is not None:
            scores_HQL = softcap * torch.tanh(scores_HQL / softcap)
        place_L = torch.arange(end - start, device=q.device)
        ahead_QL = place_L - place_L[:, None]
        hidden_QL = ahead_QL > 0 if causal else torch.zeros_like(ahead_QL, dtype=torch.bool)
        if window is not None:
            hidden_QL = hidden_QL | (ahead_QL.abs() >= window)
        weights_HQL = scores_HQL.masked_fill(hidden_QL, float("-inf")).softmax(-1)
        out_THD[start:end] = torch.einsum("hql,lhd->qhd", weights_HQL, v.repeat_interleave(group, 1))
    return out_THD
