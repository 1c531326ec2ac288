"""Linear layers of a decode step with few rows of input, in Triton.

Such a product reads every weight once and does little else, so what counts is how many bytes are under way, also while
one kernel ends and the next begins. Two kernels:

* `Vectors`, for one or two rows of input. A program keeps the input in registers, widened to float32, and takes blocks
  of whole weight rows, each in registers at once; the next block is asked for before this one is summed up.
* `Tiles`, for up to 32 rows: tensor cores, weights as the left operand (64 rows of them are what Hopper's instruction
  wants, and the few rows of input are padded to 16). Where the blocks of weight rows are too few for the GPU, K is
  split; the program that arrives last at a block adds the parts in their order, so a result never varies.

Around the product: RMS norm of the input before it, `silu(gate) * up` and the residual stream after it, rounded where
the separate operations round. With `chained`, a launch overlaps its predecessor's end (programmatic dependent launch,
NVIDIA from 9.0): it asks for its first weights, then waits for everything before it. Weights, norm weights and biases
must then not be written on the stream by the kernel before. Results differ from cuBLAS's in the order of sums only.

`use_skinny` knows where this is faster than cuBLAS (bench/linear.py). Split products share counters: one stream a GPU.

Legend: M rows of input, E input size (K in a kernel), O output size, F = 2 O with SiLU, else O: rows of the weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from octavo.kernels.chain import CHAIN
from octavo.kernels.elementwise import add_rms_norm

TILE_ROWS = 64  # of the weight; Hopper's matrix instruction takes as many


@dataclass(frozen=True, slots=True)
class Vectors:
    rows: int  # of the weight, in registers at once
    warps: int
    per_sm: int  # programs a multiprocessor, at most


@dataclass(frozen=True, slots=True)
class Tiles:
    block: int  # of K, for a step of the pipeline
    splits: int  # of K
    stages: int
    early: int  # steps whose weights are asked for before the wait of a chained launch
    rows: int = TILE_ROWS
    warps: int = 4


Config = Vectors | Tiles


@triton.jit
def unpack(word, kind: tl.constexpr):
    """The two 16-bit floats of 32-bit words, as float32. Words cost half the registers while they wait."""
    if kind == tl.bfloat16:
        low = (word << 16).to(tl.float32, bitcast=True)
        high = (word & -65536).to(tl.float32, bitcast=True)
    else:
        low = word.to(tl.int16).to(kind, bitcast=True).to(tl.float32)
        high = (word >> 16).to(tl.int16).to(kind, bitcast=True).to(tl.float32)
    return low, high


@triton.jit
def pack(low, high, kind: tl.constexpr):
    low = low.to(kind).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return low | (high.to(kind).to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def rounded(value, kind: tl.constexpr):
    return value.to(kind).to(tl.float32)


@triton.jit
def silu_mul(y, COUNT: tl.constexpr, WIDTH: tl.constexpr, kind: tl.constexpr):
    """Of gate and up in turn, [COUNT, 2 WIDTH]: [COUNT, WIDTH]."""
    gate, up = tl.split(tl.reshape(y, [COUNT, WIDTH, 2]))
    gate = rounded(gate, kind)
    return rounded(gate * tl.sigmoid(gate), kind) * rounded(up, kind)


@triton.jit
def load_rows(words_ptr, block, rows, half, W: tl.constexpr, W_P2: tl.constexpr, R: tl.constexpr, SILU: tl.constexpr):
    """Words [R, W_P2] of a block of R weight rows, zeros beyond the last; with SILU gate and up rows alternate."""
    index = block * R + tl.arange(0, R)
    inside = (index < rows)[:, None]
    if SILU:
        index = index // 2 + (index % 2) * half
    word = tl.arange(0, W_P2)
    if W_P2 != W:
        inside = inside & (word < W)[None, :]
    pointer = words_ptr + index.to(tl.int64)[:, None] * W + word[None, :]
    return tl.load(pointer, mask=inside, other=0, eviction_policy="evict_first")  # read once: x stays in the caches


@triton.jit
def vectors_kernel(
    x_ptr,  # [M, K]
    stream_ptr,  # [M, K], added to x before the norm with ADD
    norm_ptr,  # [K]
    weight_ptr,  # [rows, K]
    bias_ptr,  # [rows]
    residual_ptr,  # [M, O], added to the product
    out_ptr,  # [M, O]
    stream_out_ptr,  # [M, K]
    rows,
    eps,
    M: tl.constexpr,
    K: tl.constexpr,
    W_P2: tl.constexpr,  # words of two numbers
    R: tl.constexpr,
    ADD: tl.constexpr,
    NORM: tl.constexpr,
    WIDE: tl.constexpr,  # the norm is rounded only when it is weighted
    BIAS: tl.constexpr,
    SILU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CHAINED: tl.constexpr,
):
    kind: tl.constexpr = out_ptr.dtype.element_ty
    W: tl.constexpr = K // 2
    WIDTH: tl.constexpr = R // 2 if SILU else R
    words = tl.pointer_type(tl.int32)
    first = tl.program_id(0)
    step = tl.num_programs(0)
    half = rows // 2
    size = half if SILU else rows  # O
    word = tl.arange(0, W_P2)
    inside = word < W
    weight = load_rows(weight_ptr.to(words), first, rows, half, W, W_P2, R, SILU)
    if NORM:
        norm_low, norm_high = unpack(tl.load(norm_ptr.to(words) + word, mask=inside, other=0), kind)
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    xs = ()
    streams = ()
    for i in tl.static_range(M):
        xs = xs + (tl.load(x_ptr.to(words) + i * W + word, mask=inside, other=0),)
        if ADD:
            streams = streams + (tl.load(stream_ptr.to(words) + i * W + word, mask=inside, other=0),)
    lows = ()
    highs = ()
    for i in tl.static_range(M):
        low, high = unpack(xs[i], kind)
        if ADD:
            stream_low, stream_high = unpack(streams[i], kind)
            low = rounded(low + stream_low, kind)
            high = rounded(high + stream_high, kind)
            if first == 0:
                tl.store(stream_out_ptr.to(words) + i * W + word, pack(low, high, kind), mask=inside)
        if NORM:
            scale = tl.rsqrt(tl.sum(low * low + high * high, 0) / K + eps)
            low *= scale
            high *= scale
            if not WIDE:
                low = rounded(low, kind)
                high = rounded(high, kind)
            low = rounded(low * norm_low, kind)
            high = rounded(high * norm_high, kind)
        lows = lows + (low,)
        highs = highs + (high,)
    for block in range(first, tl.cdiv(rows, R), step):
        column = block * WIDTH + tl.arange(0, WIDTH)
        kept = column < size
        if BIAS:
            row = block * R + tl.arange(0, R)
            source = row // 2 + (row % 2) * half if SILU else row
            bias = tl.load(bias_ptr + source, mask=row < rows, other=0.0).to(tl.float32)
        residuals = ()
        if RESIDUAL:
            for i in tl.static_range(M):
                residual = tl.load(residual_ptr + i * size + column, mask=kept, other=0.0).to(tl.float32)
                residuals = residuals + (residual,)
        weight_low, weight_high = unpack(weight, kind)
        products = ()
        for i in tl.static_range(M):
            products = products + (weight_low * lows[i][None, :] + weight_high * highs[i][None, :],)
        weight = load_rows(weight_ptr.to(words), block + step, rows, half, W, W_P2, R, SILU)
        for i in tl.static_range(M):
            y = tl.sum(products[i], 1)
            if BIAS:
                y += bias
            if SILU:
                y = tl.reshape(silu_mul(tl.reshape(y, [1, R]), 1, WIDTH, kind), [WIDTH])
            if RESIDUAL:
                y = rounded(y, kind) + residuals[i]
            tl.store(out_ptr + i * size + column, y.to(kind), mask=kept)


@triton.jit(do_not_specialize=["count"])
def tiles_kernel(
    x_ptr,  # [M, K]
    weight_ptr,  # [rows, K]
    bias_ptr,  # [rows]
    residual_ptr,  # [M, O]
    out_ptr,  # [M, O]
    partial_ptr,  # float32 [SPLITS, M, rows]
    arrived_ptr,  # int32, one a block of rows; zero before and after
    count,  # M
    rows,
    K: tl.constexpr,
    M_P2: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
    BIAS: tl.constexpr,
    SILU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """A program a block of R weight rows and a part of K."""
    kind: tl.constexpr = out_ptr.dtype.element_ty
    PART: tl.constexpr = K // SPLITS
    WIDTH: tl.constexpr = R // 2 if SILU else R
    block = tl.program_id(0)
    split = tl.program_id(1)
    half = rows // 2
    size = half if SILU else rows  # O
    token = tl.arange(0, M_P2)
    inside = (token < count)[:, None]
    row = block * R + tl.arange(0, R)
    source = row // 2 + (row % 2) * half if SILU else row
    k = split * PART + tl.arange(0, BLOCK)
    x_tile = x_ptr + token[:, None] * K + k[None, :]
    weight_tile = weight_ptr + source.to(tl.int64)[:, None] * K + k[None, :]
    weights = ()
    for i in tl.static_range(EARLY):  # of the end of K: the pipeline below starts before they are needed
        last = tl.load(weight_tile + (PART - (i + 1) * BLOCK), eviction_policy="evict_first")
        weights = weights + (last,)
    if CHAINED:  # never inside a pipelined loop, whose first loads move before it
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    x_end = x_tile + PART
    sums = tl.zeros([R, M_P2], tl.float32)
    for _ in tl.range(0, PART - EARLY * BLOCK, BLOCK, num_stages=STAGES):
        weight = tl.load(weight_tile)
        x = tl.load(x_tile, mask=inside, other=0.0)
        sums = tl.dot(weight, tl.trans(x), sums)
        x_tile += BLOCK
        weight_tile += BLOCK
    for i in tl.static_range(EARLY):
        x = tl.load(x_end - (i + 1) * BLOCK, mask=inside, other=0.0)
        sums = tl.dot(weights[i], tl.trans(x), sums)
    y = tl.trans(sums)
    is_last = True
    if SPLITS > 1:
        spot = token[:, None] * rows + row[None, :]
        tl.store(partial_ptr + split * count * rows + spot, y, mask=inside)
        tl.debug_barrier()  # all of this program's part is written before it says so
        is_last = tl.atomic_add(arrived_ptr + block, 1, sem="acq_rel") == SPLITS - 1
        if is_last:
            tl.store(arrived_ptr + block, 0)
            y = tl.zeros([M_P2, R], tl.float32)
            for part in range(SPLITS):
                y += tl.load(partial_ptr + part * count * rows + spot, mask=inside, other=0.0, cache_modifier=".cg")
    if is_last:
        if BIAS:
            y += tl.load(bias_ptr + source).to(tl.float32)[None, :]
        at = token[:, None] * size + (block * WIDTH + tl.arange(0, WIDTH))[None, :]
        result = silu_mul(y, M_P2, WIDTH, kind) if SILU else y
        if RESIDUAL:
            result = rounded(result, kind) + tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + at, result.to(kind), mask=inside)


# Winners of sweeps on an H200 (bench/results): by rows of input, the largest K that each is good for.
VECTORS = {
    1: {2048: Vectors(4, 4, 12), 4096: Vectors(4, 8, 6), 8192: Vectors(2, 16, 2), 16384: Vectors(1, 16, 2)},
    2: {2048: Vectors(4, 4, 4)},
}
EXCEPTIONS: dict[tuple[int, int, int], Config] = {  # by M, F, E
    (1, 2048, 2048): Vectors(2, 4, 6),
    (2, 2048, 8192): Vectors(2, 8, 2),
}
MOST_ROWS = 32
TILE = 128  # of K


def use_skinny(m: int, n: int, k: int, dtype: torch.dtype, device: torch.device) -> Config | None:
    """How to multiply m rows by a weight [n, k]; None where cuBLAS is faster, or nobody has measured."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or not 1 <= m <= MOST_ROWS or k % 8:
        return None
    capability, sms = gpu(device)
    return choose(m, n, k, sms) if capability == (9, 0) else None


def choose(m: int, n: int, k: int, sms: int) -> Config | None:
    """The rule of `use_skinny`, without a device."""
    if (m, n, k) in EXCEPTIONS:
        return EXCEPTIONS[m, n, k]
    for most, vectors in VECTORS.get(m, {}).items():
        if k <= most:
            return vectors
    if n % TILE_ROWS or k % TILE:
        return None
    blocks, splits = n // TILE_ROWS, 1
    room = 2 * sms if m <= 16 else 3 * sms // 2  # what runs at once: a second wave would find the memory idle
    while 2 * splits * blocks <= room and k % (2 * splits * TILE) == 0 and k // (2 * splits * TILE) >= 4:
        splits *= 2
    if splits == 1:
        return Tiles(TILE, 1, stages=4, early=0)
    if blocks * splits <= sms:
        return Tiles(TILE, splits, stages=6, early=0)
    return Tiles(TILE, splits, stages=3, early=2)


@cache
def gpu(device: torch.device) -> tuple[tuple[int, int], int]:
    capability = torch.cuda.get_device_capability(device) if torch.version.hip is None else (0, 0)
    return capability, torch.cuda.get_device_properties(device).multi_processor_count


@cache
def counters(device: torch.device) -> Tensor:
    return torch.zeros(1 << 16, dtype=torch.int32, device=device)


def skinny_linear(
    x_ME: Tensor,
    weight_FE: Tensor,
    bias_F: Tensor | None = None,
    *,
    config: Config,
    residual_MO: Tensor | None = None,
    silu: bool = False,
    chained: bool = False,
) -> Tensor:
    """x W^T + b as [M, O]; with `silu` the weight is gate over up. `residual_MO` is added to the rounded result."""
    if isinstance(config, Vectors):
        return _vectors(x_ME, weight_FE, bias_F, config, residual_MO, silu, chained)[0]
    return _tiles(x_ME, weight_FE, bias_F, config, residual_MO, silu, chained)


def norm_linear(
    x_ME: Tensor,
    stream_ME: Tensor | None,
    norm: tuple[Tensor, float, bool],
    weight_FE: Tensor,
    bias_F: Tensor | None = None,
    *,
    config: Config,
    silu: bool = False,
    chained: bool = False,
) -> tuple[Tensor, Tensor]:
    """(linear layer of the RMS norm of the new stream, new stream). Without a stream, it begins with x; the old one may
    be overwritten.

    `norm` is (weight [E], epsilon, whether it is rounded only when it is weighted).
    """
    if isinstance(config, Vectors):
        return _vectors(x_ME, weight_FE, bias_F, config, None, silu, chained, norm, stream_ME)
    norm_E, eps, wide = norm
    normed_ME, new_ME = add_rms_norm(x_ME, stream_ME, norm_E, eps, 1.0, wide)
    return _tiles(normed_ME, weight_FE, bias_F, config, None, silu, chained), new_ME


def _vectors(
    x_ME: Tensor,
    weight_FE: Tensor,
    bias_F: Tensor | None,
    config: Vectors,
    residual_MO: Tensor | None,
    silu: bool,
    chained: bool,
    norm: tuple[Tensor, float, bool] | None = None,
    stream_ME: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    (m, k), f = x_ME.shape, len(weight_FE)
    assert x_ME.is_contiguous() and weight_FE.is_contiguous() and k % 2 == 0 and f % (1 + silu) == 0
    out_MO = x_ME.new_empty(m, f // 2 if silu else f)
    new_ME = x_ME if stream_ME is None else torch.empty_like(x_ME)
    norm_E, eps, wide = norm if norm is not None else (None, 0.0, False)
    rows = max(config.rows, 2) if silu else config.rows
    sms = gpu(x_ME.device)[1] if x_ME.is_cuda else 1
    vectors_kernel[(min(triton.cdiv(f, rows), config.per_sm * sms),)](
        x_ME,
        stream_ME,
        norm_E,
        weight_FE,
        bias_F,
        residual_MO,
        out_MO,
        new_ME,
        f,
        eps,
        M=m,
        K=k,
        W_P2=triton.next_power_of_2(k // 2),
        R=rows,
        ADD=stream_ME is not None,
        NORM=norm is not None,
        WIDE=wide,
        BIAS=bias_F is not None,
        SILU=silu,
        RESIDUAL=residual_MO is not None,
        num_warps=config.warps,
        num_stages=1,
        **CHAIN[chained],
    )
    return out_MO, new_ME


def _tiles(
    x_ME: Tensor,
    weight_FE: Tensor,
    bias_F: Tensor | None,
    config: Tiles,
    residual_MO: Tensor | None,
    silu: bool,
    chained: bool,
) -> Tensor:
    (m, k), f = x_ME.shape, len(weight_FE)
    assert x_ME.is_contiguous() and weight_FE.is_contiguous()
    assert f % config.rows == 0 and k % (config.splits * config.block) == 0
    assert k // (config.splits * config.block) > config.early
    out_MO = x_ME.new_empty(m, f // 2 if silu else f)
    split = config.splits > 1
    partial = torch.empty((config.splits, m, f), dtype=torch.float32, device=x_ME.device) if split else None
    tiles_kernel[(f // config.rows, config.splits)](
        x_ME,
        weight_FE,
        bias_F,
        residual_MO,
        out_MO,
        partial,
        counters(x_ME.device) if split else None,
        m,
        f,
        K=k,
        M_P2=max(16, triton.next_power_of_2(m)),
        R=config.rows,
        BLOCK=config.block,
        SPLITS=config.splits,
        STAGES=config.stages,
        EARLY=config.early,
        BIAS=bias_F is not None,
        SILU=silu,
        RESIDUAL=residual_MO is not None,
        num_warps=config.warps,
        **CHAIN[chained],
    )
    return out_MO


def reference_linear(
    x_ME: Tensor,
    weight_FE: Tensor,
    bias_F: Tensor | None = None,
    residual_MO: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """What `skinny_linear` computes, in torch."""
    y_MO = F.linear(x_ME, weight_FE, bias_F)
    if silu:
        gate, up = y_MO.chunk(2, -1)
        y_MO = F.silu(gate) * up
    return y_MO if residual_MO is None else y_MO + residual_MO


def reference_norm(x_ME: Tensor, stream_ME: Tensor | None, norm: tuple[Tensor, float, bool]) -> tuple[Tensor, Tensor]:
    """(input of the linear layer, new stream) of `norm_linear`, in torch."""
    norm_E, eps, wide = norm
    new_ME = x_ME if stream_ME is None else x_ME + stream_ME
    wide_ME = new_ME.float()
    wide_ME *= (wide_ME.square().mean(-1, keepdim=True) + eps).rsqrt()
    if wide:
        return (wide_ME * norm_E.float()).to(x_ME.dtype), new_ME
    return wide_ME.to(x_ME.dtype) * norm_E, new_ME
