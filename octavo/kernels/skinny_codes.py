"""Products of few rows of input with quantised weights, in Triton: `octavo.kernels.skinny_linear` for codes.

y = x W^T with W = code * scale + offset, a scale for each row and group of columns. What is read is the codes, so the
same two kernels apply, at two to four times the arithmetic for each byte: `Vectors` for one row, `Tiles` for up to 32.

Codes are made numbers without conversions, which the hardware has too few of. In `Vectors` a byte of float8 is moved
to where float32 has its sign, exponent and mantissa, which is 2^-120 of its value; an integer to the highest bits of
the mantissa of a number from 1 to 2, from which the sum of the inputs is taken off again: at most three of float32's
24 bits are lost. In `Tiles` 4 bits go to the lowest bits of a number of 16 bits, minus what that is for zero: exact.

Legend: M rows of input, E input size (K in a kernel), O output size, F = 2 O with SiLU, else O: rows of the weight,
G groups of a row, P bytes of a row. N and K in `CodeMatrix` are F and E.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.codes import CodeMatrix
from octavo.kernels.quant_linear import halves, offset_of
from octavo.kernels.skinny_linear import (
    CHAIN,
    TILE_ROWS,
    Config,
    Tiles,
    Vectors,
    counters,
    gpu,
    load_rows,
    rounded,
    silu_mul,
    unpack,
)

PARTS = {"fp8": 4, "int8": 4, "int4": 8}  # codes of a word of 32 bits
MOST_ROWS = 32
BLOCK = 128  # columns of a block of 4-bit codes that the kernels take, and of a step of `Tiles`


@triton.jit
def mantissa(word, PART: tl.constexpr, KIND: tl.constexpr):
    """A code of each word as float32: float8 times 2^-120, or 1 + (code - least) / number of codes."""
    if KIND == "fp8":
        bits = ((word << (24 - 8 * PART)) >> 4) & -0x78100000  # the sign, four of exponent, three of mantissa
    elif KIND == "int8":
        place: tl.constexpr = 15 - 8 * PART
        moved = word << place if place >= 0 else word >> -place
        bits = (moved & 0x7F8000) ^ 0x3FC00000  # -128 has no bit set
    else:
        place: tl.constexpr = 19 - 4 * PART
        moved = word << place if place >= 0 else word >> -place
        bits = (moved & 0x780000) | 0x3F800000
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def vectors_kernel(
    x_ptr,  # [K]
    code_ptr,  # [rows, P]
    scale_ptr,  # [rows, G]
    offset_ptr,  # likewise
    bias_ptr,  # [rows]
    residual_ptr,  # [O], added to the product
    out_ptr,  # [O]
    rows,
    KIND: tl.constexpr,
    PARTS: tl.constexpr,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    W_P2: tl.constexpr,
    R: tl.constexpr,
    OFFSET: tl.constexpr,
    BIAS: tl.constexpr,
    SILU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CHAINED: tl.constexpr,
):
    kind: tl.constexpr = out_ptr.dtype.element_ty
    W: tl.constexpr = K // PARTS
    WIDTH: tl.constexpr = R // 2 if SILU else R
    GROUP: tl.constexpr = K // GROUPS
    Q_P2: tl.constexpr = W_P2 // 4  # of four words each, which share a scale
    codes: tl.constexpr = 256 if KIND == "int8" else 16
    zero: tl.constexpr = 0 if OFFSET and KIND == "int4" else codes // 2
    words = tl.pointer_type(tl.int32)
    first = tl.program_id(0)
    step = tl.num_programs(0)
    half = rows // 2
    size = half if SILU else rows  # O
    word = tl.arange(0, W_P2)
    inside = word < W
    code = load_rows(code_ptr.to(words), first, rows, half, W, W_P2, R, SILU)
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    near = word * 2  # words of x that meet the first half of a word's codes
    far = near + 1
    if KIND == "int4":
        near = word // 16 * 64 + word % 16 * 2
        far = near + 32
    xs = ()
    if KIND == "int4":
        for h in tl.static_range(2):
            a, b = unpack(tl.load(x_ptr.to(words) + near + h, mask=inside, other=0), kind)
            c, d = unpack(tl.load(x_ptr.to(words) + far + h, mask=inside, other=0), kind)
            xs = xs + (a, c, b, d)
    else:
        a, b = unpack(tl.load(x_ptr.to(words) + near, mask=inside, other=0), kind)
        c, d = unpack(tl.load(x_ptr.to(words) + far, mask=inside, other=0), kind)
        if KIND == "fp8":  # so that no product is too small for a float32
            a *= 1.2676506002282294e30
            b *= 1.2676506002282294e30
            c *= 1.2676506002282294e30
            d *= 1.2676506002282294e30
        xs = (a, b, c, d)
    total = xs[0]
    for p in tl.static_range(1, PARTS):
        total += xs[p]
    if GROUPS > 1:
        quad = tl.arange(0, Q_P2)
        of_group = quad * (4 * PARTS) // GROUP
        in_group = quad * 4 < W
        quad_total = tl.sum(tl.reshape(total, [Q_P2, 4]), 1)
    else:
        all_total = tl.sum(total, 0)
    for block in range(first, tl.cdiv(rows, R), step):
        column = block * WIDTH + tl.arange(0, WIDTH)
        kept = column < size
        row = block * R + tl.arange(0, R)
        there = row < rows
        source = row // 2 + (row % 2) * half if SILU else row
        if BIAS:
            bias = tl.load(bias_ptr + source, mask=there, other=0.0).to(tl.float32)
        if RESIDUAL:
            residual = tl.load(residual_ptr + column, mask=kept, other=0.0).to(tl.float32)
        if GROUPS > 1:
            place = source[:, None] * GROUPS + of_group[None, :]
            mask = there[:, None] & in_group[None, :]
            scale = tl.load(scale_ptr + place, mask=mask, other=0.0).to(tl.float32)
            if OFFSET:
                offset = offset_of(tl.load(offset_ptr + place, mask=mask, other=0), scale)
        else:
            scale = tl.load(scale_ptr + source, mask=there, other=0.0).to(tl.float32)
            if OFFSET:
                offset = offset_of(tl.load(offset_ptr + source, mask=there, other=0), scale)
        products = mantissa(code, 0, KIND) * xs[0][None, :]
        for p in tl.static_range(1, PARTS):
            products += mantissa(code, p, KIND) * xs[p][None, :]
        code = load_rows(code_ptr.to(words), block + step, rows, half, W, W_P2, R, SILU)
        if GROUPS > 1:
            sums = tl.sum(tl.reshape(products, [R, Q_P2, 4]), 2)
            if KIND != "fp8":
                sums = sums * codes - quad_total[None, :] * (codes + zero)
            sums *= scale
            if OFFSET:
                sums += offset * quad_total[None, :]
            y = tl.sum(sums, 1)
        else:
            y = tl.sum(products, 1)
            if KIND != "fp8":
                y = y * codes - all_total * (codes + zero)
            y *= scale
            if OFFSET:
                y += offset * all_total
        if KIND == "fp8":
            y *= 1048576.0
        if BIAS:
            y += bias
        if SILU:
            y = tl.reshape(silu_mul(tl.reshape(y, [1, R]), 1, WIDTH, kind), [WIDTH])
        if RESIDUAL:
            y = rounded(y, kind) + residual
        tl.store(out_ptr + column, y.to(kind), mask=kept)


@triton.jit
def add_tile(
    sums, x_tile, code, scale_tile, offset_tile, group, inside,
    KIND: tl.constexpr, BLOCK: tl.constexpr, GROUPED: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Goes on with the sums [R, M] over BLOCK columns, all of one group."""
    x = tl.load(x_tile, mask=inside, other=0.0)
    into = sums
    if GROUPED:
        into = tl.zeros_like(sums)
    if KIND == "int4":
        far = tl.load(x_tile + BLOCK // 2, mask=inside, other=0.0)
        low, high = halves(code, 0 if OFFSET else 8, x.dtype)
        into = tl.dot(low, tl.trans(x), into)
        into = tl.dot(high, tl.trans(far), into)
    else:
        into = tl.dot(code.to(x.dtype), tl.trans(x), into)
    if GROUPED:
        scale = tl.load(scale_tile + group).to(tl.float32)
        into = sums + into * scale[:, None]
        if OFFSET:
            total = tl.sum(x.to(tl.float32), 1)
            if KIND == "int4":
                total += tl.sum(far.to(tl.float32), 1)
            into += offset_of(tl.load(offset_tile + group), scale)[:, None] * total[None, :]
    return into


@triton.jit(do_not_specialize=["count"])
def tiles_kernel(
    x_ptr,  # [M, K]
    code_ptr,  # [rows, P]
    scale_ptr,  # [rows, G]
    offset_ptr,  # likewise
    bias_ptr,  # [rows]
    residual_ptr,  # [M, O]
    out_ptr,  # [M, O]
    partial_ptr,  # float32 [SPLITS, M, rows]
    arrived_ptr,  # int32, one a block of rows; zero before and after
    count,  # M
    rows,
    KIND: tl.constexpr,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    M_P2: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
    OFFSET: tl.constexpr,
    BIAS: tl.constexpr,
    SILU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """A program a block of R weight rows and a part of K."""
    kind: tl.constexpr = out_ptr.dtype.element_ty
    PART: tl.constexpr = K // SPLITS
    EACH: tl.constexpr = 2 if KIND == "int4" else 1  # codes of a byte
    BYTES: tl.constexpr = BLOCK // EACH
    WIDTH: tl.constexpr = R // 2 if SILU else R
    GROUP: tl.constexpr = K // GROUPS
    GROUPED: tl.constexpr = GROUPS > 1 or OFFSET
    block = tl.program_id(0)
    split = tl.program_id(1)
    half = rows // 2
    size = half if SILU else rows  # O
    token = tl.arange(0, M_P2)
    inside = (token < count)[:, None]
    row = block * R + tl.arange(0, R)
    source = row // 2 + (row % 2) * half if SILU else row
    scale_tile = scale_ptr + source * GROUPS
    offset_tile = scale_tile
    if OFFSET:
        offset_tile = offset_ptr + source * GROUPS
    place = tl.arange(0, BYTES)
    x_tile = x_ptr + token[:, None] * K + (split * PART + place)[None, :]
    code_tile = code_ptr + source.to(tl.int64)[:, None] * (K // EACH) + (split * (PART // EACH) + place)[None, :]
    tiles = ()
    for i in tl.static_range(EARLY):  # of the end of K: the pipeline below starts before they are needed
        last = tl.load(code_tile + (PART // EACH - (i + 1) * BYTES), eviction_policy="evict_first")
        tiles = tiles + (last,)
    if CHAINED:  # never inside a pipelined loop, whose first loads move before it
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    sums = tl.zeros([R, M_P2], tl.float32)
    for start in tl.range(0, PART - EARLY * BLOCK, BLOCK, num_stages=STAGES):
        code = tl.load(code_tile + start // EACH)
        group = (split * PART + start) // GROUP
        sums = add_tile(
            sums, x_tile + start, code, scale_tile, offset_tile, group, inside, KIND, BLOCK, GROUPED, OFFSET
        )
    for i in tl.static_range(EARLY):
        group = (split * PART + PART - (i + 1) * BLOCK) // GROUP
        x_end = x_tile + (PART - (i + 1) * BLOCK)
        sums = add_tile(sums, x_end, tiles[i], scale_tile, offset_tile, group, inside, KIND, BLOCK, GROUPED, OFFSET)
    if not GROUPED:
        sums *= tl.load(scale_tile).to(tl.float32)[:, None]
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


def choose(m: int, codes: CodeMatrix, dtype: torch.dtype, sms: int) -> Config | None:
    """How to multiply m rows; None where the kernels cannot."""
    n, k = codes.shape
    if dtype not in (torch.bfloat16, torch.float16) or not 1 <= m <= MOST_ROWS or k % BLOCK:
        return None
    if codes.kind == "int4" and codes.block != BLOCK or codes.group % 16:
        return None
    if m == 1:
        return vectors_for(k, codes.kind)
    tile = next((size for size in (BLOCK, 64, 32) if codes.group % size == 0), 0)
    if n % TILE_ROWS or not tile:
        return None
    blocks, splits = n // TILE_ROWS, 1
    while 2 * splits * blocks <= 3 * sms and k % (2 * splits * tile) == 0 and k // (2 * splits * tile) >= 4:
        splits *= 2
    return Tiles(tile, splits, stages=4, early=2 if k // (splits * tile) > 2 else 0)


def vectors_for(k: int, kind: str) -> Vectors:
    words = k // PARTS[kind]
    if words <= 512:
        return Vectors(8, 4, 6)
    if words <= 1024:
        return Vectors(8, 8, 4)
    return Vectors(4, 8, 4) if words <= 2048 else Vectors(4, 16, 2)


def skinny_codes(
    x_ME: Tensor,
    codes: CodeMatrix,
    bias_F: Tensor | None = None,
    *,
    config: Config,
    residual_MO: Tensor | None = None,
    silu: bool = False,
    chained: bool = False,
) -> Tensor:
    """x W^T + b as [M, O]; with `silu` the weight is gate over up. `residual_MO` is added to the rounded result."""
    m, (f, k) = len(x_ME), codes.shape
    assert x_ME.is_contiguous() and codes.code_NP.is_contiguous() and x_ME.shape[1] == k
    out_MO = x_ME.new_empty(m, f // 2 if silu else f)
    tensors = codes.code_NP, codes.scale_NG, codes.offset_NG, bias_F, residual_MO, out_MO
    flags = {
        "KIND": codes.kind,
        "K": k,
        "GROUPS": codes.scale_NG.shape[1],
        "OFFSET": codes.offset_NG is not None,
        "BIAS": bias_F is not None,
        "SILU": silu,
        "RESIDUAL": residual_MO is not None,
        "CHAINED": chained,
        "num_warps": config.warps,
        **CHAIN[chained],
    }
    if isinstance(config, Vectors):
        assert m == 1 and k % (2 * PARTS[codes.kind]) == 0
        rows = max(config.rows, 2) if silu else config.rows
        sms = gpu(x_ME.device)[1] if x_ME.is_cuda else 1
        vectors_kernel[(min(triton.cdiv(f, rows), config.per_sm * sms),)](
            x_ME,
            *tensors,
            f,
            PARTS=PARTS[codes.kind],
            W_P2=triton.next_power_of_2(k // PARTS[codes.kind]),
            R=rows,
            num_stages=1,
            **flags,
        )
        return out_MO
    split = config.splits > 1
    assert f % config.rows == 0 and k % (config.splits * config.block) == 0
    assert k // (config.splits * config.block) > config.early
    partial = torch.empty((config.splits, m, f), dtype=torch.float32, device=x_ME.device) if split else None
    tiles_kernel[(f // config.rows, config.splits)](
        x_ME,
        *tensors,
        partial,
        counters(x_ME.device) if split else None,
        m,
        f,
        M_P2=max(16, triton.next_power_of_2(m)),
        R=config.rows,
        BLOCK=config.block,
        SPLITS=config.splits,
        STAGES=config.stages,
        EARLY=config.early,
        **flags,
    )
    return out_MO
