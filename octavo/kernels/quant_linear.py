"""Products with quantised weights, in Triton: what is read of a weight is its codes.

y = x W^T with W = code * scale + offset, a scale for each row and group of columns. Codes (8-bit and 4-bit integers,
float8) are whole in 16 bits, so a tile of them is multiplied as it is, and what comes out is scaled: a product for each
group, exact but for its sums. The offsets multiply the sum of the group's inputs.

Weights are the left operand: 64 or 128 rows of them are what tensor cores want, however few rows x has. Two codes of
4 bits in a byte meet the even and the odd inputs, so that no code ever moves between threads. Where few tiles would
leave a GPU idle, K is split and the parts are added by torch.

Legend: M rows of x, N rows of W, K columns, G groups of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Form:
    rows: int  # of W, and of x, that a program multiplies
    inputs: int
    columns: int  # at a time; a group has a multiple of them
    splits: int
    warps: int
    stages: int


@triton.jit
def quant_linear_kernel(
    x_ptr,
    code_ptr,  # [N, K], or [N, K / 2] of two codes a byte, the even column in the lower half
    scale_ptr,  # [N, G] float32
    offset_ptr,  # likewise, if OFFSET
    y_ptr,  # [splits, M, N]
    num_inputs,
    num_rows,
    num_columns,
    num_groups,
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
    PACKED: tl.constexpr = COLUMNS // 2 if HALVES else COLUMNS
    EACH: tl.constexpr = 2 if HALVES else 1  # columns of a byte
    place = tl.arange(0, PACKED)
    code_row = code_ptr + n.to(tl.int64)[:, None] * (num_columns // EACH)
    x_row = x_ptr + m.to(tl.int64)[None, :] * x_stride
    acc = tl.zeros([ROWS, INPUTS], tl.float32)
    for step in tl.range(split * steps, (split + 1) * steps):
        start = step * COLUMNS
        byte = start // EACH + place
        there = byte * EACH < num_columns
        code = tl.load(code_row + byte[None, :], mask=of_n[:, None] & there[None, :], other=0.0)
        mask = there[:, None] & of_m[None, :]
        x = tl.load(x_row + byte[:, None] * EACH, mask=mask, other=0.0)
        if HALVES:
            odd = tl.load(x_row + byte[:, None] * 2 + 1, mask=mask, other=0.0)
            part = tl.dot((code & 15).to(x.dtype), x, input_precision="ieee")
            part = tl.dot((code >> 4).to(x.dtype), odd, part, input_precision="ieee")
        else:
            part = tl.dot(code.to(x.dtype), x, input_precision="ieee")
        of_group = of_n & (start + tl.zeros_like(n) < num_columns)
        index = n * num_groups + start // group
        acc += part * tl.load(scale_ptr + index, mask=of_group, other=0.0)[:, None]
        if OFFSET:
            total = tl.sum(x.to(tl.float32), 0)
            if HALVES:
                total += tl.sum(odd.to(tl.float32), 0)
            acc += tl.load(offset_ptr + index, mask=of_group, other=0.0)[:, None] * total[None, :]
    y = y_ptr + (split * num_inputs + m).to(tl.int64)[None, :] * num_rows + n[:, None]
    tl.store(y, acc.to(y_ptr.dtype.element_ty), mask=of_n[:, None] & of_m[None, :])


def choose(inputs: int, rows: int, columns: int, group: int, processors: int) -> Form:
    """By roofline: few inputs read W once with many bytes under way, many fill tensor cores. Not yet tuned on a GPU."""
    step = next((size for size in (128, 64, 32, 16) if group % size == 0), 0)
    assert step, "groups are multiples of 16 columns"
    if inputs > 64:
        return Form(128, 128, min(step, 64), 1, 8, 3)
    width = 16 if inputs <= 16 else 32 if inputs <= 32 else 64
    tiles = triton.cdiv(rows, 64)
    splits = 1
    while tiles * splits < 2 * processors and columns // (2 * splits) >= 4 * step and splits < 16:
        splits *= 2
    return Form(64, width, step, splits, 4, 4)


def quant_linear(
    x_MK: Tensor, code: Tensor, scale_NG: Tensor, offset_NG: Tensor | None, halves: bool, form: Form | None = None
) -> Tensor:
    """[M, N] in the type of x. `halves`: two codes a byte. Its reference is `dequantize` of octavo.quant.schemes."""
    inputs, columns = x_MK.shape
    rows, groups = scale_NG.shape
    group = columns // groups
    if form is None:
        form = choose(inputs, rows, columns, group, _processors(x_MK.device))
    x_MK = x_MK if x_MK.stride(1) == 1 else x_MK.contiguous()
    dtype = x_MK.dtype if form.splits == 1 else torch.float32
    y_SMN = torch.empty(form.splits, inputs, rows, dtype=dtype, device=x_MK.device)
    steps = triton.cdiv(triton.cdiv(columns, form.columns), form.splits)
    quant_linear_kernel[(triton.cdiv(rows, form.rows), triton.cdiv(inputs, form.inputs), form.splits)](
        x_MK,
        code,
        scale_NG,
        scale_NG if offset_NG is None else offset_NG,
        y_SMN,
        inputs,
        rows,
        columns,
        groups,
        x_MK.stride(0),
        steps,
        group,
        HALVES=halves,
        OFFSET=offset_NG is not None,
        ROWS=form.rows,
        INPUTS=form.inputs,
        COLUMNS=form.columns,
        num_warps=form.warps,
        num_stages=form.stages,
    )
    return y_SMN[0] if form.splits == 1 else y_SMN.sum(0).to(x_MK.dtype)


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
