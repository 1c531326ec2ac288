"""What lies between a layer's matrix products, in Triton: one launch, one pass over memory each.

The norms with the residual stream's addition before or after them, `rotate_and_write`, `gate` and `cap` do what the
torch code of `octavo.layers` does (its reference), reading and writing every value once. They compute in float32 and
round where the models' own code rounds: a norm before it is weighted (unless it is `wide`: then after), an activation
before it is multiplied. Nothing is read on the host, and grids follow from shapes.

Legend: T tokens, E hidden, F inner size, H query heads, K key/value heads, J = H + K + K, D head size, P positions,
S sampled rows, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels import kv_cache
from octavo.kernels.chain import chain
from octavo.kernels.paged_attention import quantise, scale_place
from octavo.kernels.row_codes import Rounding, RowCodes, flags, store_codes

HEADS_PER_PROGRAM = 8  # of rotate_and_write: a small batch still fills several SMs
COLUMNS_PER_PROGRAM = 1024  # of gate and cap


@triton.jit
def weighted(normed, weight, kind: tl.constexpr, WIDE: tl.constexpr):
    return normed * weight if WIDE else normed.to(kind).to(tl.float32) * weight


@triton.jit
def norm_kernel(
    x_ptr,  # [T, E], rows `stride` apart
    residual_ptr,  # [T, E], read and written with ADD or AFTER, else not touched
    weight_ptr,
    bias_ptr,
    next_weight_ptr,
    out_ptr,  # like x
    code_ptr,  # with ROUND the result goes here, see octavo.kernels.row_codes
    code_scale_ptr,
    sum_ptr,
    stride,
    size,
    eps,
    scale,
    ADD: tl.constexpr,  # residual += scale * x, and the norm is that of the residual
    AFTER: tl.constexpr,  # residual += scale * norm(x)
    NEXT: tl.constexpr,  # after which the result is its norm by the next weight
    CENTER: tl.constexpr,  # a layer norm
    BIAS: tl.constexpr,
    WIDE: tl.constexpr,  # the norm is rounded only when it is weighted
    ROUND: tl.constexpr,
    INTEGER: tl.constexpr,
    PAIR: tl.constexpr,
    STATIC: tl.constexpr,
    GROUP: tl.constexpr,
    SUMMED: tl.constexpr,
    SIZE_P2: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """A program a token: the norm of a row, with the residual stream's addition before or after it."""
    token = tl.program_id(0).to(tl.int64)
    offset = tl.arange(0, SIZE_P2)
    inside = offset < size
    weight = tl.load(weight_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    x = tl.load(x_ptr + token * stride + offset, mask=inside, other=0.0).to(tl.float32)
    residual = residual_ptr + token * size + offset
    if ADD:
        stream = tl.load(residual, mask=inside, other=0.0).to(tl.float32) + scale * x
        rounded = stream.to(residual_ptr.dtype.element_ty)
        tl.store(residual, rounded, mask=inside)
        x = rounded.to(tl.float32)
    if CENTER:
        x = tl.where(inside, x - tl.sum(x, 0) / size, 0.0)
    kind = out_ptr.dtype.element_ty
    normed = weighted(x * tl.rsqrt(tl.sum(x * x, 0) / size + eps), weight, kind, WIDE)
    if BIAS:
        normed += tl.load(bias_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    if AFTER:
        stream = tl.load(residual, mask=inside, other=0.0).to(tl.float32) + scale * normed.to(kind).to(tl.float32)
        rounded = stream.to(residual_ptr.dtype.element_ty)
        tl.store(residual, rounded, mask=inside)
        if NEXT:
            x = rounded.to(tl.float32)
            weight = tl.load(next_weight_ptr + offset, mask=inside, other=0.0).to(tl.float32)
            normed = weighted(x * tl.rsqrt(tl.sum(x * x, 0) / size + eps), weight, kind, WIDE)
    if ROUND:
        value = normed.to(kind).to(tl.float32)
        into = code_ptr, code_scale_ptr, sum_ptr
        store_codes(value, token, size, offset, inside, into, INTEGER, PAIR, STATIC, GROUP, SUMMED)
    elif NEXT or not AFTER:
        tl.store(out_ptr + token * stride + offset, normed.to(kind), mask=inside)


@triton.jit
def rotate_and_write_kernel(
    qkv_ptr,  # [T, J, D], rows `stride` apart
    q_out_ptr,  # [T, H, D]
    table_ptr,  # [P, 2 D]: cosines and signed sines, as octavo.layers.rope has them
    positions_ptr,
    slots_ptr,  # where the token's keys and values go; negative: nowhere
    key_cache_ptr,
    value_cache_ptr,
    scale_ptr,  # of a quantised cache: see octavo.kernels.paged_attention
    q_weight_ptr,
    k_weight_ptr,
    stride,
    eps,
    NORM: tl.constexpr,
    LATE: tl.constexpr,  # norms what is turned
    WIDE: tl.constexpr,  # as in norm_kernel
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_P2: tl.constexpr,
    HALF: tl.constexpr,  # so many pairs turn; the rest of a head is multiplied by one. 0: nothing turns
    INTERLEAVED: tl.constexpr,  # pairs are (2 i, 2 i + 1), else (i, i + HALF)
    BLOCK: tl.constexpr,  # heads of a program
    BLOCK_SIZE: tl.constexpr,  # of the cache
    QUANTISED: tl.constexpr,
    LARGEST: tl.constexpr,
    INTEGER: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """A program a token and a few of its heads: norms and turns queries and keys, and fills the token's cache slot."""
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    dim = tl.arange(0, DIM_P2)
    inside = dim < HEAD_DIM
    present = (head[:, None] < HEADS + 2 * KV_HEADS) & inside[None, :]
    start = qkv_ptr + token * stride + head[:, None] * HEAD_DIM
    raw = tl.load(start + dim[None, :], mask=present, other=0.0)
    x = raw.to(tl.float32)
    kind = qkv_ptr.dtype.element_ty
    is_query = (head < HEADS)[:, None]
    if NORM:
        q_weight = tl.load(q_weight_ptr + dim, mask=inside, other=0.0).to(tl.float32)[None, :]
        k_weight = tl.load(k_weight_ptr + dim, mask=inside, other=0.0).to(tl.float32)[None, :]
    if NORM and not LATE:
        scale = tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)[:, None]
        x *= scale
        if not WIDE:
            x = x.to(kind).to(tl.float32)
        x = (x * tl.where(is_query, q_weight, k_weight)).to(kind).to(tl.float32)
    if HALF > 0:
        if INTERLEAVED:
            partner = tl.where(dim < 2 * HALF, dim ^ 1, dim)
        else:
            partner = tl.where(dim < HALF, dim + HALF, tl.where(dim < 2 * HALF, dim - HALF, dim))
        swapped = tl.load(start + partner[None, :], mask=present, other=0.0).to(tl.float32)
        if NORM and not LATE:
            q_partner = tl.load(q_weight_ptr + partner, mask=inside, other=0.0).to(tl.float32)[None, :]
            k_partner = tl.load(k_weight_ptr + partner, mask=inside, other=0.0).to(tl.float32)[None, :]
            swapped *= scale
            if not WIDE:
                swapped = swapped.to(kind).to(tl.float32)
            swapped = (swapped * tl.where(is_query, q_partner, k_partner)).to(kind).to(tl.float32)
        position = tl.load(positions_ptr + token)
        angle = table_ptr + position * (2 * HEAD_DIM) + dim
        cos = tl.load(angle, mask=inside, other=0.0).to(tl.float32)
        sin = tl.load(angle + HEAD_DIM, mask=inside, other=0.0).to(tl.float32)
        x = x * cos[None, :] + swapped * sin[None, :]
    if NORM and LATE:
        x = x.to(kind).to(tl.float32)
        x *= tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)[:, None]
        if not WIDE:
            x = x.to(kind).to(tl.float32)
        x *= tl.where(is_query, q_weight, k_weight)
    turned = x.to(q_out_ptr.dtype.element_ty)
    column = head[:, None] * HEAD_DIM + dim[None, :]
    tl.store(q_out_ptr + token * (HEADS * HEAD_DIM) + column, turned, mask=present & is_query)
    slot = tl.load(slots_ptr + token + tl.zeros([BLOCK, 1], tl.int64))  # a column: the interpreter wants one
    kept = present & (slot >= 0)
    is_key = (head[:, None] >= HEADS) & (head[:, None] < HEADS + KV_HEADS)
    is_value = (head[:, None] >= HEADS + KV_HEADS) & (head[:, None] < HEADS + 2 * KV_HEADS)
    key_row = slot * KV_HEADS - HEADS
    value_row = key_row - KV_HEADS
    if QUANTISED:
        new, scale = quantise(tl.where(is_key, turned, raw).to(tl.float32), LARGEST, INTEGER)
        kept_head = head[:, None] - tl.where(is_key, HEADS, HEADS + KV_HEADS)
        place = scale_place(slot, kept_head, BLOCK_SIZE, KV_HEADS) + is_value.to(tl.int64)
        tl.store(scale_ptr + place, scale[:, None].to(tl.float16), mask=(is_key | is_value) & (slot >= 0))
        new_key = new.to(key_cache_ptr.dtype.element_ty)
        new_value = new_key
    else:
        new_key, new_value = turned, raw
    tl.store(key_cache_ptr + key_row * HEAD_DIM + column, new_key, mask=kept & is_key)
    tl.store(value_cache_ptr + value_row * HEAD_DIM + column, new_value, mask=kept & is_value)


@triton.jit
def gated(gate_ptr, up_ptr, inside, ACTIVATION: tl.constexpr):
    """activation(gate) * up, rounded where the operations round."""
    gate = tl.load(gate_ptr, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr, mask=inside, other=0.0).to(tl.float32)
    kind = gate_ptr.dtype.element_ty
    if ACTIVATION == "silu":
        activated = gate * tl.sigmoid(gate)
    elif ACTIVATION == "gelu":
        activated = 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476))
    else:
        tl.static_assert(ACTIVATION == "gelu_tanh")
        # (1 + tanh(z)) / 2 = sigmoid(2 z), and 2 z = 2 sqrt(2 / pi) (x + 0.044715 x^3)
        activated = gate * tl.sigmoid(1.5957691216057308 * gate * (1 + 0.044715 * gate * gate))
    return (activated.to(kind).to(tl.float32) * up).to(kind)


@triton.jit
def gate_kernel(gate_up_ptr, out_ptr, size, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr):
    """A program a token and a block of columns."""
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    gate = gate_up_ptr + token * 2 * size + column
    tl.store(out_ptr + token * size + column, gated(gate, gate + size, inside, ACTIVATION), mask=inside)


@triton.jit
def gate_codes_kernel(
    gate_up_ptr,
    code_ptr,
    scale_ptr,
    sum_ptr,
    size,
    ACTIVATION: tl.constexpr,
    INTEGER: tl.constexpr,
    PAIR: tl.constexpr,
    STATIC: tl.constexpr,
    GROUP: tl.constexpr,
    SUMMED: tl.constexpr,
    SIZE_P2: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """A program a token: codes have a scale for all of a row."""
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, SIZE_P2)
    inside = column < size
    gate = gate_up_ptr + token * 2 * size + column
    value = gated(gate, gate + size, inside, ACTIVATION).to(tl.float32)
    into = code_ptr, scale_ptr, sum_ptr
    store_codes(value, token, size, column, inside, into, INTEGER, PAIR, STATIC, GROUP, SUMMED)


@triton.jit
def cap_kernel(logits_ptr, size, scale, softcap, CAP: tl.constexpr, BLOCK: tl.constexpr):
    """A program a row and a block of columns: logits *= scale, then softcap * tanh(logits / softcap)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    logits = tl.load(logits_ptr + row * size + column, mask=inside, other=0.0).to(tl.float32) * scale
    if CAP:
        logits = softcap * (2 * tl.sigmoid(2 * logits / softcap) - 1)
    tl.store(logits_ptr + row * size + column, logits.to(logits_ptr.dtype.element_ty), mask=inside)


def _norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    eps: float,
    scale: float,
    wide: bool,
    center: bool = False,
    after: bool = False,
    next_weight: Tensor | None = None,
    codes: RowCodes | None = None,
    rounding: Rounding | None = None,
) -> None:
    size = x.shape[-1]
    block = triton.next_power_of_2(size)
    norm_kernel[(len(x),)](
        x,
        x if residual is None else residual,
        weight,
        weight if bias is None else bias,
        weight if next_weight is None else next_weight,
        out,
        None if codes is None else codes.code_MPE,
        None if codes is None else codes.scale_M,
        None if codes is None else codes.sum_BMP,
        x.stride(0),
        size,
        eps,
        scale,
        ADD=residual is not None and not after,
        AFTER=after,
        NEXT=next_weight is not None,
        CENTER=center,
        BIAS=bias is not None,
        WIDE=wide,
        ROUND=codes is not None,
        **flags(rounding),
        SIZE_P2=block,
        num_warps=min(16, max(1, block // 512)),
        **chain(x.device),
    )


def add_rms_norm(
    x_TE: Tensor,
    residual_TE: Tensor | None,
    weight_E: Tensor,
    eps: float,
    scale: float = 1.0,
    wide: bool = False,
) -> tuple[Tensor, Tensor]:
    """(norm of the stream, stream): the residual grows by scale * x in place; without one the stream is x itself."""
    out_TE = torch.empty_like(x_TE)
    _norm(x_TE, residual_TE, weight_E, None, out_TE, eps, scale, wide)
    return out_TE, x_TE if residual_TE is None else residual_TE


def add_rms_norm_codes(
    x_TE: Tensor,
    residual_TE: Tensor | None,
    weight_E: Tensor,
    eps: float,
    scale: float,
    wide: bool,
    rounding: Rounding,
) -> tuple[RowCodes, Tensor]:
    """`add_rms_norm` with the norm in codes."""
    codes = RowCodes.empty(rounding, *x_TE.shape, x_TE.dtype, x_TE.device)
    _norm(x_TE, residual_TE, weight_E, None, x_TE, eps, scale, wide, codes=codes, rounding=rounding)
    return codes, x_TE if residual_TE is None else residual_TE


def add_layer_norm(
    x_TE: Tensor,
    residual_TE: Tensor | None,
    weight_E: Tensor,
    bias_E: Tensor | None,
    eps: float,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Like `add_rms_norm`, with a layer norm, which is always wide."""
    out_TE = torch.empty_like(x_TE)
    _norm(x_TE, residual_TE, weight_E, bias_E, out_TE, eps, scale, wide=True, center=True)
    return out_TE, x_TE if residual_TE is None else residual_TE


def rms_norm_add(x_TE: Tensor, stream_TE: Tensor, weight_E: Tensor, eps: float, scale: float, wide: bool) -> Tensor:
    """The stream, which grows by scale * norm(x) in place."""
    _norm(x_TE, stream_TE, weight_E, None, x_TE, eps, scale, wide, after=True)
    return stream_TE


def rms_norm_add_rms_norm(
    x_TE: Tensor, stream_TE: Tensor, weight_E: Tensor, next_weight_E: Tensor, eps: float, scale: float, wide: bool
) -> tuple[Tensor, Tensor]:
    """(norm of the stream, stream): the latter grows by scale * norm(x) in place. Each norm has its weight."""
    out_TE = torch.empty_like(x_TE)
    _norm(x_TE, stream_TE, weight_E, None, out_TE, eps, scale, wide, after=True, next_weight=next_weight_E)
    return out_TE, stream_TE


def rms_norm_(x_TE: Tensor, weight_E: Tensor, eps: float, wide: bool) -> None:
    """In place; the rows may lie apart."""
    _norm(x_TE, None, weight_E, None, x_TE, eps, 1.0, wide)


def rotate_and_write(
    qkv: Tensor,
    rope: tuple[Tensor, int, bool] | None,
    positions_T: Tensor,
    slots_T: Tensor,
    cache: tuple[Tensor, ...],
    heads: int,
    norm: tuple[Tensor, Tensor, float, bool, bool] | None,
) -> Tensor:
    """Queries [T, H, D], normed and turned. Keys, likewise, and values go to the cache at their slots.

    `qkv` is [T, J * D]; `rope` is (cosines and signed sines [P, 1, 2 D], pairs that turn, whether interleaved);
    `cache` holds keys and values [blocks, block size, K, D], and their scales if it is quantised; `norm` is (weight of
    queries [D], of keys [D], epsilon, whether wide, whether what is turned is normed).
    """
    keys, values, *scales = cache
    kv_heads, head_dim = keys.shape[-2:]
    q_THD = torch.empty((len(qkv), heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    table, half, interleaved = rope if rope is not None else (qkv, 0, False)
    q_weight, k_weight, eps, wide, late = norm if norm is not None else (qkv, qkv, 0.0, False, False)
    block = HEADS_PER_PROGRAM
    rotate_and_write_kernel[(len(qkv), triton.cdiv(heads + 2 * kv_heads, block))](
        qkv,
        q_THD,
        table,
        positions_T,
        slots_T,
        keys,
        values,
        *(scales or (keys,)),
        q_weight,
        k_weight,
        qkv.stride(0),
        eps,
        NORM=norm is not None,
        LATE=late,
        WIDE=wide,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        DIM_P2=triton.next_power_of_2(head_dim),
        HALF=half,
        INTERLEAVED=interleaved,
        BLOCK=block,
        BLOCK_SIZE=keys.shape[1],
        num_warps=4,
        **kv_cache.constants(keys.dtype),
        **chain(qkv.device),
    )
    return q_THD


def gate(gate_up_TF: Tensor, activation: str) -> Tensor:
    """activation(gate) * up, from [T, 2 F] with the gate first, to [T, F]. One of silu, gelu, gelu_tanh."""
    tokens, size = len(gate_up_TF), gate_up_TF.shape[-1] // 2
    out_TF = torch.empty((tokens, size), dtype=gate_up_TF.dtype, device=gate_up_TF.device)
    grid = (tokens, triton.cdiv(size, COLUMNS_PER_PROGRAM))
    options = {"BLOCK": COLUMNS_PER_PROGRAM, "num_warps": 4, **chain(out_TF.device)}
    gate_kernel[grid](gate_up_TF, out_TF, size, ACTIVATION=activation, **options)
    return out_TF


def gate_codes(gate_up_TF: Tensor, activation: str, rounding: Rounding) -> RowCodes:
    """`gate` in codes."""
    tokens, size = len(gate_up_TF), gate_up_TF.shape[-1] // 2
    codes = RowCodes.empty(rounding, tokens, size, gate_up_TF.dtype, gate_up_TF.device)
    block = triton.next_power_of_2(size)
    options = {"SIZE_P2": block, "num_warps": min(16, max(1, block // 256)), **chain(gate_up_TF.device)}
    into = codes.code_MPE, codes.scale_M, codes.sum_BMP
    gate_codes_kernel[(tokens,)](gate_up_TF, *into, size, ACTIVATION=activation, **flags(rounding), **options)
    return codes


def cap(logits_SV: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Scaled, then pressed into (-softcap, softcap) if there is one; in place."""
    size = logits_SV.shape[-1]
    grid = (len(logits_SV), triton.cdiv(size, COLUMNS_PER_PROGRAM))
    capped = softcap is not None
    cap_kernel[grid](
        logits_SV, size, scale, softcap if capped else 1.0, CAP=capped, BLOCK=COLUMNS_PER_PROGRAM, num_warps=4
    )
    return logits_SV
