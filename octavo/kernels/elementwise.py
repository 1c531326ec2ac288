"""What lies between a layer's matrix products, in Triton: one launch, one pass over memory each.

`add_rms_norm`, `rotate_and_write` and `silu_mul` do what the torch code of `octavo.layers` does (its reference),
reading and writing every value once. They compute in float32 and round where the models' own code rounds: a norm
before it is weighted, silu before it is multiplied. Nothing is read on the host, and grids follow from shapes.

Legend: T tokens, E hidden, F inner size, H query heads, K key/value heads, J = H + K + K, D head size, P positions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

HEADS_PER_PROGRAM = 8  # of rotate_and_write: a small batch still fills several SMs


@triton.jit
def add_rms_norm_kernel(
    x_ptr,
    residual_ptr,  # read and written; without ADD not touched
    weight_ptr,
    out_ptr,
    size,
    eps,
    ADD: tl.constexpr,
    SIZE_P2: tl.constexpr,
):
    """A program a token: residual += x, out = norm(residual) * weight."""
    row = tl.program_id(0).to(tl.int64) * size
    offset = tl.arange(0, SIZE_P2)
    inside = offset < size
    value = tl.load(x_ptr + row + offset, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(residual_ptr + row + offset, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + row + offset, rounded, mask=inside)
        value = rounded.to(tl.float32)
    weight = tl.load(weight_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / size + eps)
    normed = (value * scale).to(out_ptr.dtype.element_ty).to(tl.float32) * weight
    tl.store(out_ptr + row + offset, normed.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rotate_and_write_kernel(
    qkv_ptr,  # [T, J, D], rows `stride` apart
    q_out_ptr,  # [T, H, D]
    table_ptr,  # [P, 2 D]: cosines and signed sines, as octavo.layers.rope has them
    positions_ptr,
    slots_ptr,  # where the token's keys and values go; negative: nowhere
    key_cache_ptr,
    value_cache_ptr,
    q_weight_ptr,
    k_weight_ptr,
    stride,
    eps,
    NORM: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_P2: tl.constexpr,
    HALF: tl.constexpr,  # pairs (i, i + HALF) turn; the rest of a head is multiplied by one
    BLOCK: tl.constexpr,  # heads of a program
):
    """A program a token and a few of its heads: norms and turns queries and keys, and fills the token's cache slot."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    dim = tl.arange(0, DIM_P2)
    present = (head[:, None] < HEADS + 2 * KV_HEADS) & (dim[None, :] < HEAD_DIM)
    partner = tl.where(dim < HALF, dim + HALF, tl.where(dim < 2 * HALF, dim - HALF, dim))
    start = qkv_ptr + token * stride + head[:, None] * HEAD_DIM
    raw = tl.load(start + dim[None, :], mask=present, other=0.0)
    x = raw.to(tl.float32)
    swapped = tl.load(start + partner[None, :], mask=present, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)[:, None]
        is_query = (head < HEADS)[:, None]
        inside = dim < HEAD_DIM
        q_weight = tl.load(q_weight_ptr + dim, mask=inside, other=0.0).to(tl.float32)[None, :]
        k_weight = tl.load(k_weight_ptr + dim, mask=inside, other=0.0).to(tl.float32)[None, :]
        q_partner = tl.load(q_weight_ptr + partner, mask=inside, other=0.0).to(tl.float32)[None, :]
        k_partner = tl.load(k_weight_ptr + partner, mask=inside, other=0.0).to(tl.float32)[None, :]
        kind = qkv_ptr.dtype.element_ty
        x = (x * scale).to(kind).to(tl.float32) * tl.where(is_query, q_weight, k_weight)
        x = x.to(kind).to(tl.float32)
        swapped = (swapped * scale).to(kind).to(tl.float32) * tl.where(is_query, q_partner, k_partner)
        swapped = swapped.to(kind).to(tl.float32)
    position = tl.load(positions_ptr + token)
    angle = table_ptr + position * (2 * HEAD_DIM) + dim
    cos = tl.load(angle, mask=dim < HEAD_DIM, other=0.0).to(tl.float32)
    sin = tl.load(angle + HEAD_DIM, mask=dim < HEAD_DIM, other=0.0).to(tl.float32)
    turned = (x * cos[None, :] + swapped * sin[None, :]).to(q_out_ptr.dtype.element_ty)
    column = head[:, None] * HEAD_DIM + dim[None, :]
    tl.store(q_out_ptr + token * (HEADS * HEAD_DIM) + column, turned, mask=present & (head[:, None] < HEADS))
    slot = tl.load(slots_ptr + token + tl.zeros([BLOCK, 1], tl.int64))  # a column: the interpreter wants one
    kept = present & (slot >= 0)
    key = kept & (head[:, None] >= HEADS) & (head[:, None] < HEADS + KV_HEADS)
    tl.store(key_cache_ptr + (slot * KV_HEADS - HEADS) * HEAD_DIM + column, turned, mask=key)
    value = kept & (head[:, None] >= HEADS + KV_HEADS)
    tl.store(value_cache_ptr + (slot * KV_HEADS - HEADS - KV_HEADS) * HEAD_DIM + column, raw, mask=value)


@triton.jit
def silu_mul_kernel(gate_up_ptr, out_ptr, size, BLOCK: tl.constexpr):
    """A program a token and a block of columns: silu(gate) * up."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    gate = tl.load(gate_up_ptr + token * 2 * size + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + token * 2 * size + size + column, mask=inside, other=0.0).to(tl.float32)
    kind = out_ptr.dtype.element_ty
    activated = (gate * tl.sigmoid(gate)).to(kind).to(tl.float32)
    tl.store(out_ptr + token * size + column, (activated * up).to(kind), mask=inside)


def add_rms_norm(x_TE: Tensor, residual_TE: Tensor | None, weight_E: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(norm of the stream, stream): the residual grows by x in place; without one the stream is x itself."""
    out_TE = torch.empty_like(x_TE)
    size = x_TE.shape[-1]
    stream_TE = x_TE if residual_TE is None else residual_TE
    block = triton.next_power_of_2(size)
    add_rms_norm_kernel[(len(x_TE),)](
        x_TE,
        stream_TE,
        weight_E,
        out_TE,
        size,
        eps,
        ADD=residual_TE is not None,
        SIZE_P2=block,
        num_warps=min(16, max(1, block // 512)),
    )
    return out_TE, stream_TE


def rotate_and_write(
    qkv: Tensor,
    table_P1F: Tensor,
    half: int,
    positions_T: Tensor,
    slots_T: Tensor,
    cache: tuple[Tensor, Tensor],
    heads: int,
    norm: tuple[Tensor, Tensor, float] | None,
) -> Tensor:
    """Queries [T, H, D], normed and turned. Keys, likewise, and values go to the cache at their slots.

    `qkv` is [T, J * D]; `table_P1F` holds cosines and signed sines [P, 1, 2 D]; `cache` holds keys and values
    [blocks, block size, K, D]; `norm` is (weight of queries [D], of keys [D], epsilon).
    """
    keys, values = cache
    kv_heads, head_dim = keys.shape[-2:]
    q_THD = torch.empty((len(qkv), heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    q_weight, k_weight, eps = norm if norm is not None else (qkv, qkv, 0.0)
    block = HEADS_PER_PROGRAM
    rotate_and_write_kernel[(len(qkv), triton.cdiv(heads + 2 * kv_heads, block))](
        qkv,
        q_THD,
        table_P1F,
        positions_T,
        slots_T,
        keys,
        values,
        q_weight,
        k_weight,
        qkv.stride(0),
        eps,
        NORM=norm is not None,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        DIM_P2=triton.next_power_of_2(head_dim),
        HALF=half,
        BLOCK=block,
        num_warps=4,
    )
    return q_THD


def silu_mul(gate_up_TF: Tensor) -> Tensor:
    """[T, 2 F] with the gate first, to [T, F]."""
    tokens, size = len(gate_up_TF), gate_up_TF.shape[-1] // 2
    out_TF = torch.empty((tokens, size), dtype=gate_up_TF.dtype, device=gate_up_TF.device)
    block = 1024
    silu_mul_kernel[(tokens, triton.cdiv(size, block))](gate_up_TF, out_TF, size, BLOCK=block, num_warps=4)
    return out_TF
