"""Rounding of rows to codes of 8 bits (`octavo.kernels.codes`), in Triton: alone, or at the end of another kernel.

Legend: M rows, E columns.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.chain import chain
from octavo.kernels.codes import HELD, Rounding, RowCodes

MULTIPLE = tl.constexpr(HELD)


@triton.jit
def store_codes(
    x, row, size, offset, inside, code_ptr, scale_ptr,
    INTEGER: tl.constexpr, PAIR: tl.constexpr, STATIC: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Of one row's values in float32, zeros outside. A program has a row."""
    LARGEST: tl.constexpr = 127.0 if INTEGER else 448.0
    if STATIC:
        scale = tl.load(scale_ptr + row)
    elif GROUP:
        COUNT: tl.constexpr = x.shape[0] // GROUP
        group = tl.arange(0, COUNT)
        of_group = tl.maximum(tl.max(tl.abs(tl.reshape(x, [COUNT, GROUP])), 1), 1e-12) / LARGEST
        held = tl.cdiv(tl.num_programs(0), MULTIPLE) * MULTIPLE
        tl.store(scale_ptr + group * held + row, of_group, mask=group < size // GROUP)
        scale = tl.reshape(tl.broadcast_to(of_group[:, None], [COUNT, GROUP]), [COUNT * GROUP])
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
    GROUP: tl.constexpr,
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
    store_codes(x, row, size, offset, inside, code_ptr, scale_ptr, INTEGER, PAIR, STATIC, GROUP)


def flags(rounding: Rounding | None) -> dict[str, int]:
    """Of a kernel that calls `store_codes`, or does not."""
    if rounding is None:
        return {"INTEGER": False, "PAIR": False, "STATIC": False, "GROUP": 0}
    static = rounding.scale is not None
    return {"INTEGER": rounding.kind == "int8", "PAIR": rounding.pair, "STATIC": static, "GROUP": rounding.group}


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
