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
def store_sums(code, place, size, sum_ptr, EACH: tl.constexpr, SUMMED: tl.constexpr):
    """Of blocks of a row's codes, of which there are EACH kinds."""
    block = tl.arange(0, code.shape[0] // SUMMED)
    total = tl.sum(tl.reshape(code.to(tl.float32), [code.shape[0] // SUMMED, SUMMED]), 1)
    tl.store(sum_ptr + block * tl.num_programs(0) * EACH + place, total, mask=block < size // SUMMED)


@triton.jit
def store_codes(
    x, row, size, offset, inside, into,
    INTEGER: tl.constexpr, PAIR: tl.constexpr, STATIC: tl.constexpr, GROUP: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    """Of one row's values in float32, zeros outside. A program has a row. `into`: codes, scales, sums."""
    code_ptr, scale_ptr, sum_ptr = into
    LARGEST: tl.constexpr = 127.0 if INTEGER else 448.0
    EACH: tl.constexpr = 2 if PAIR else 1
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
    start = code_ptr + row * EACH * size + offset
    first = tl.floor(value + 0.5) if INTEGER else value
    first = first.to(kind)
    tl.store(start, first, mask=inside)
    if SUMMED:
        store_sums(first, row * EACH, size, sum_ptr, EACH, SUMMED)
    if PAIR:
        rest = (value - first.to(tl.float32)) * (256 if INTEGER else 16)
        if INTEGER:
            rest = tl.clamp(tl.floor(rest + 0.5), -128, 127)
        second = rest.to(kind)
        tl.store(start + size, second, mask=inside)
        if SUMMED:
            store_sums(second, row * EACH + 1, size, sum_ptr, EACH, SUMMED)


@triton.jit
def round_rows_kernel(
    x_ptr,  # [M, E], rows `stride` apart
    code_ptr,
    scale_ptr,
    sum_ptr,
    stride,
    size,
    INTEGER: tl.constexpr,
    PAIR: tl.constexpr,
    STATIC: tl.constexpr,
    GROUP: tl.constexpr,
    SUMMED: tl.constexpr,
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
    into = code_ptr, scale_ptr, sum_ptr
    store_codes(x, row, size, offset, inside, into, INTEGER, PAIR, STATIC, GROUP, SUMMED)


def flags(rounding: Rounding | None) -> dict[str, int]:
    """Of a kernel that calls `store_codes`, or does not."""
    given = rounding or Rounding("fp8")
    return {
        "INTEGER": given.kind == "int8",
        "PAIR": given.pair,
        "STATIC": given.scale is not None,
        "GROUP": given.group,
        "SUMMED": given.summed,
    }


def round_rows(x_ME: Tensor, rounding: Rounding) -> RowCodes:
    rows, size = x_ME.shape
    x_ME = x_ME if x_ME.stride(1) == 1 else x_ME.contiguous()
    codes = RowCodes.empty(rounding, rows, size, x_ME.dtype, x_ME.device)
    block = triton.next_power_of_2(size)
    round_rows_kernel[(rows,)](
        x_ME,
        codes.code_MPE,
        codes.scale_M,
        codes.sum_BMP,
        x_ME.stride(0),
        size,
        **flags(rounding),
        SIZE_P2=block,
        num_warps=min(16, max(1, block // 512)),
        **chain(x_ME.device),
    )
    return codes
