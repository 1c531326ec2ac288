"""Products with quantised weights, in Triton: what is read of a weight is its codes.

y = x W^T with W as `octavo.kernels.codes` has it: code * scale + offset. Codes (8-bit and 4-bit integers, float8) are
whole in 16 bits, so a tile of them is multiplied as it is, and what comes out is scaled: a product for each group,
exact but for its sums. The offsets multiply the sum of the group's inputs.

Weights are the left operand: 64 or 128 rows of them are what tensor cores want, however few rows x has. The two codes
of 4 bits of a byte meet inputs half a block apart, so that no code ever moves between threads. Where few tiles would
leave a GPU idle, K is split and the parts are added by torch. For few rows of x there is `octavo.kernels.skinny_codes`,
for very many `decode` and a product of torch.

Legend: M rows of x, N rows of W, K columns, G groups of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.codes import CodeMatrix


@dataclass(frozen=True, slots=True)
class Form:
    rows: int  # of W, and of x, that a program multiplies
    inputs: int
    columns: int  # at a time; a group has a multiple of them
    splits: int
    warps: int
    stages: int


@triton.jit
def halves(code, kind: tl.constexpr):
    """The two codes of bytes as floats. In 16 bits without a conversion, of which hardware can do few."""
    if kind == tl.float32:
        low = ((code & 15) ^ 8).to(kind) - 8
        high = ((code >> 4) ^ 8).to(kind) - 8
    else:  # 128 or 1024, whose last four bits count ones, and 8
        magic: tl.constexpr = 0x4308 if kind == tl.bfloat16 else 0x6408
        middle: tl.constexpr = 136 if kind == tl.bfloat16 else 1032
        bits = code.to(tl.int16)
        low = ((bits & 15) ^ magic).to(kind, bitcast=True) - middle
        high = (((bits >> 4) & 15) ^ magic).to(kind, bitcast=True) - middle
    return low, high


@triton.jit
def mxfp4_number(code, kind: tl.constexpr):
    """Of the lower half of each byte, by way of float16's smallest numbers."""
    bits = code.to(tl.uint16)
    value = ((bits & 8) << 12 | (bits & 7) << 9).to(tl.float16, bitcast=True)
    return (value.to(tl.float32) * 16384.0).to(kind)


@triton.jit
def mxfp4_scale(exponent):
    """Put where float32 has its own."""
    return (exponent.to(tl.int32) << 23).to(tl.float32, bitcast=True)


@triton.jit
def offset_of(value, scale):
    """An offset, or what a zero stands for."""
    if value.dtype == tl.int8:
        return -scale * value.to(tl.float32)
    else:
        return value


@triton.jit
def quant_linear_kernel(
    x_ptr,
    code_ptr,  # [N, K], or [N, K / 2] of two codes a byte
    scale_ptr,  # [G, N]
    offset_ptr,  # likewise, if OFFSET
    y_ptr,  # [splits, M, N]
    num_inputs,
    num_rows,
    num_columns,
    x_stride,
    steps,  # of a split
    group,  # columns
    HALVES: tl.constexpr,
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    INPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m = tl.program_id(1) * INPUTS + tl.arange(0, INPUTS)
    split = tl.program_id(2)
    of_n = n < num_rows
    of_m = m < num_inputs
    EACH: tl.constexpr = 2 if HALVES else 1  # columns of a byte
    BYTES: tl.constexpr = COLUMNS // EACH
    place = tl.arange(0, BYTES)
    code_row = code_ptr + n.to(tl.int64)[:, None] * (num_columns // EACH) + place[None, :]
    x_row = x_ptr + m.to(tl.int64)[None, :] * x_stride + place[:, None]
    acc = tl.zeros([ROWS, INPUTS], tl.float32)
    for step in tl.range(split * steps, (split + 1) * steps):
        start = step * COLUMNS
        there = start + place < num_columns
        code = tl.load(code_row + step * BYTES, mask=of_n[:, None] & there[None, :], other=0.0)
        mask = there[:, None] & of_m[None, :]
        x = tl.load(x_row + start, mask=mask, other=0.0)
        if HALVES:
            far = tl.load(x_row + (start + BYTES), mask=mask, other=0.0)
            low, high = halves(code, x.dtype)
            part = tl.dot(low, x, input_precision="ieee")
            part = tl.dot(high, far, part, input_precision="ieee")
        else:
            part = tl.dot(code.to(x.dtype), x, input_precision="ieee")
        of_group = of_n & (start + tl.zeros_like(n) < num_columns)
        index = start // group * num_rows + n
        scale = tl.load(scale_ptr + index, mask=of_group, other=0.0).to(tl.float32)
        acc += part * scale[:, None]
        if OFFSET:
            total = tl.sum(x.to(tl.float32), 0)
            if HALVES:
                total += tl.sum(far.to(tl.float32), 0)
            offset = offset_of(tl.load(offset_ptr + index, mask=of_group, other=0), scale)
            acc += offset[:, None] * total[None, :]
    y = y_ptr + (split * num_inputs + m).to(tl.int64)[None, :] * num_rows + n[:, None]
    tl.store(y, acc.to(y_ptr.dtype.element_ty), mask=of_n[:, None] & of_m[None, :])


@triton.jit
def decode_kernel(
    code_ptr,
    scale_ptr,
    offset_ptr,
    weight_ptr,  # [N, K]
    num_rows,
    num_columns,
    group,
    HALVES: tl.constexpr,
    MXFP4: tl.constexpr,  # groups may be shorter than a block
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program some rows of a block of columns."""
    EACH: tl.constexpr = 2 if HALVES else 1
    BYTES: tl.constexpr = COLUMNS // EACH
    kind = weight_ptr.dtype.element_ty
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.program_id(0) * COLUMNS + tl.arange(0, BYTES)[None, :]
    there = (row < num_rows) & (column < num_columns)
    place = row * (num_columns // EACH) + tl.program_id(0) * BYTES + tl.arange(0, BYTES)[None, :]
    code = tl.load(code_ptr + place, mask=there, other=0.0)
    index = column // group * num_rows + row
    weight = weight_ptr + row * num_columns + column
    if MXFP4:
        low = mxfp4_number(code & 15, tl.float32) * mxfp4_scale(tl.load(scale_ptr + index, mask=there, other=0))
        index = (column + BYTES) // group * num_rows + row
        high = mxfp4_number(code >> 4, tl.float32) * mxfp4_scale(tl.load(scale_ptr + index, mask=there, other=0))
        tl.store(weight, low.to(kind), mask=there)
        tl.store(weight + BYTES, high.to(kind), mask=there)
        return
    scale = tl.load(scale_ptr + index, mask=there, other=0.0).to(tl.float32)
    shift = tl.zeros_like(scale)
    if OFFSET:
        shift = offset_of(tl.load(offset_ptr + index, mask=there, other=0), scale)
    if HALVES:
        low, high = halves(code, tl.float32)
        tl.store(weight, (low * scale + shift).to(kind), mask=there)
        tl.store(weight + BYTES, (high * scale + shift).to(kind), mask=there)
    else:
        tl.store(weight, (code.to(tl.float32) * scale + shift).to(kind), mask=there)


def choose(inputs: int, codes: CodeMatrix, processors: int) -> Form:
    """By roofline: few inputs read W once with many bytes under way, many fill tensor cores. Not yet tuned on a GPU."""
    rows, columns = codes.shape
    step = codes.block or next((size for size in (128, 64, 32, 16) if codes.group % size == 0), 0)
    assert step, "groups are multiples of 16 columns"
    if inputs > 64:
        return Form(128, 128, step if codes.block else min(step, 64), 1, 8, 3)
    width = 16 if inputs <= 16 else 32 if inputs <= 32 else 64
    tiles = triton.cdiv(rows, 64)
    splits = 1
    while tiles * splits < 2 * processors and columns // (2 * splits) >= 4 * step and splits < 16:
        splits *= 2
    return Form(64, width, step, splits, 4, 4)


def quant_linear(x_MK: Tensor, codes: CodeMatrix, form: Form | None = None) -> Tensor:
    """x W^T, [M, N] in the type of x. The reference is `CodeMatrix.dequantize`."""
    inputs, (rows, columns) = len(x_MK), codes.shape
    if form is None:
        form = choose(inputs, codes, _processors(x_MK.device))
    assert form.columns == codes.block or not codes.block
    x_MK = x_MK if x_MK.stride(1) == 1 else x_MK.contiguous()
    dtype = x_MK.dtype if form.splits == 1 else torch.float32
    y_SMN = torch.empty(form.splits, inputs, rows, dtype=dtype, device=x_MK.device)
    steps = triton.cdiv(triton.cdiv(columns, form.columns), form.splits)
    quant_linear_kernel[(triton.cdiv(rows, form.rows), triton.cdiv(inputs, form.inputs), form.splits)](
        x_MK,
        codes.code_NP,
        codes.scale_GN,
        codes.offset_GN,
        y_SMN,
        inputs,
        rows,
        columns,
        x_MK.stride(0),
        steps,
        codes.group,
        HALVES=bool(codes.block),
        OFFSET=codes.offset_GN is not None,
        ROWS=form.rows,
        INPUTS=form.inputs,
        COLUMNS=form.columns,
        num_warps=form.warps,
        num_stages=form.stages,
    )
    return y_SMN[0] if form.splits == 1 else y_SMN.sum(0).to(x_MK.dtype)


def decode(codes: CodeMatrix, dtype: torch.dtype) -> Tensor:
    """W [N, K], computed in float32 and rounded once."""
    rows, columns = codes.shape
    weight_NK = torch.empty(rows, columns, dtype=dtype, device=codes.code_NP.device)
    size = codes.block or 128
    decode_kernel[(triton.cdiv(columns, size), triton.cdiv(rows, 32))](
        codes.code_NP,
        codes.scale_GN,
        codes.offset_GN,
        weight_NK,
        rows,
        columns,
        codes.group,
        HALVES=bool(codes.block),
        MXFP4=codes.kind == "mxfp4",
        OFFSET=codes.offset_GN is not None,
        ROWS=32,
        COLUMNS=size,
        num_warps=4,
    )
    return weight_NK


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
