"""Rounding of rows to codes of 8 bits (`octavo.kernels.codes`), in Triton: alone, or at the end of another kernel.

Legend: M rows, E columns.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.chain import chain
from octavo.kernels.codes import Rounding, RowCodes


@triton.jit
def store_codes(
    x, row, size, offset, inside, code_ptr, scale_ptr, INTEGER: tl.constexpr, PAIR: tl.constexpr, STATIC: tl.constexpr
):  # fmt: skip
    """Of one row's values in float32, zeros outside."""
    LARGEST: tl.constexpr = 127.0 if INTEGER else 448.0
    if STATIC:
        scale = tl.load(scale_ptr + row)
    else:
        scale = tl.maximum(tl.max(tl.abs(x), 0), 1e-12) / LARGEST
        tl.store(scale_ptr + row, scale)
    value = tl.clamp(x / scale, -LARGEST, LARGEST)
    kind = code_ptr.dtype.element_ty
    start = code_ptr + row * (2 if PAIR else 1) * size + offset
    first = tl.floor(value + 0.5) if INTEGER else value
    first = first.to(kind)
    tl.store(start, first, mask=inside)
    if PAIR:
        rest = (value - first.to(tl.float32)) * (256 if INTEGER else 16)
        if INTEGER:
            rest = tl.clamp(tl.floor(rest + 0.5), -128, 127)
        tl.store(start + size, rest.to(kind), mask=inside)


@triton.jit
def round_rows_kernel(
    x_ptr,  # [M, E], rows `stride` apart
    code_ptr,
    scale_ptr,
    stride,
    size,
    INTEGER: tl.constexpr,
    PAIR: tl.constexpr,
    STATIC: tl.constexpr,
    SIZE_P2: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """A program a row."""
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    offset = tl.arange(0, SIZE_P2)
    inside = offset < size
    x = tl.load(x_ptr + row * stride + offset, mask=inside, other=0.0).to(tl.float32)
    store_codes(x, row, size, offset, inside, code_ptr, scale_ptr, INTEGER, PAIR, STATIC)


def flags(rounding: Rounding | None) -> dict[str, bool]:
    """Of a kernel that calls `store_codes`, or does not."""
    if rounding is None:
        return {"INTEGER": False, "PAIR": False, "STATIC": False}
    return {"INTEGER": rounding.kind == "int8", "PAIR": rounding.pair, "STATIC": rounding.scale is not None}


def round_rows(x_ME: Tensor, rounding: Rounding) -> RowCodes:
    rows, size = x_ME.shape
    x_ME = x_ME if x_ME.stride(1) == 1 else x_ME.contiguous()
    codes = RowCodes.empty(rounding, rows, size, x_ME.dtype, x_ME.device)
    block = triton.next_power_of_2(size)
    round_rows_kernel[(rows,)](
        x_ME,
        codes.code_MPE,
        codes.scale_M,
        x_ME.stride(0),
        size,
        **flags(rounding),
        SIZE_P2=block,
        num_warps=min(16, max(1, block // 512)),
        **chain(x_ME.device),
    )
    return codes
