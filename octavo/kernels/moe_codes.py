"""Rows of experts' weights as the kernels of experts read them: codes that become numbers in registers.

Codes and scales are those of `octavo.kernels.codes`, all experts one below the other. A scale of the whole row (GROUP
is 0) multiplies the row's sum; one of GROUP neighbouring columns multiplies each number, in the type that is
multiplied, as decoding first does. A tile of bytes of 4-bit codes is two tiles of numbers, half a LAYOUT of columns
apart.

Legend: R rows of W, B bytes of a row, S spans: neighbouring bytes whose low halves, and high ones, share scales.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from octavo.kernels.codes import CodeMatrix
from octavo.kernels.quant_linear import halves, mxfp4_number, mxfp4_scale, offset_of
from octavo.kernels.skinny_codes import parts

PLAIN: dict[str, Any] = {
    "CODE": "plain", "LAYOUT": 0, "GROUP": 0, "SPAN": 0, "SAME": False, "OFFSET": False, "TOTAL": 0, "PTX": False,
}  # fmt: skip
MXFP4_HALVES = """
{
    .reg .b32 a, b, x, y, unit, zero;
    mov.b32 unit, UNIT;
    mov.b32 zero, 0x80008000;
    prmt.b32 a, $4, 0, 0x4140;
    prmt.b32 b, $4, 0, 0x4342;
    shl.b32 x, a, 12;
    and.b32 x, x, 0x80008000;
    shl.b32 y, a, LOW;
    lop3.b32 x, y, MASK, x, 0xEA;
    fma.rn.KIND $0, x, unit, zero;
    shl.b32 x, b, 12;
    and.b32 x, x, 0x80008000;
    shl.b32 y, b, LOW;
    lop3.b32 x, y, MASK, x, 0xEA;
    fma.rn.KIND $1, x, unit, zero;
    shl.b32 x, a, 8;
    and.b32 x, x, 0x80008000;
    shl.b32 y, a, HIGH;
    lop3.b32 x, y, MASK, x, 0xEA;
    fma.rn.KIND $2, x, unit, zero;
    shl.b32 x, b, 8;
    and.b32 x, x, 0x80008000;
    shl.b32 y, b, HIGH;
    lop3.b32 x, y, MASK, x, 0xEA;
    fma.rn.KIND $3, x, unit, zero;
}
"""


def _filled(**words: str) -> tl.constexpr:
    text = MXFP4_HALVES
    for name, word in words.items():
        text = text.replace(name, word)
    return tl.constexpr(text)


# Sign, exponent and fraction go where a float of 16 bits has them, among its smallest; a power of two puts it right.
BFLOATS = _filled(UNIT="0x7E807E80", LOW="6", HIGH="2", MASK="0x01C001C0", KIND="bf16x2")
FLOATS = _filled(UNIT="0x74007400", LOW="9", HIGH="5", MASK="0x0E000E00", KIND="f16x2")


@triton.jit
def numbers(raw, kind: tl.constexpr, CODE: tl.constexpr, PTX: tl.constexpr):
    """Two tiles of codes; of bytes that hold one code each, the same twice."""
    # Codes of 4 bits are whole in bfloat16, which is half of a float32.
    direct: tl.constexpr = tl.bfloat16 if PTX and kind == tl.float32 else kind
    if CODE == "fp8" or CODE == "int8":
        low = raw.to(kind)
        high = low
    elif CODE == "int4":
        if PTX:
            low, high = parts(raw, direct, PTX)
        else:
            low, high = halves(raw, kind)
    else:
        tl.static_assert(CODE == "mxfp4")
        if not PTX:
            low = mxfp4_number(raw & 15, kind)
            high = mxfp4_number(raw >> 4, kind)
        elif direct == tl.bfloat16:
            low, high = tl.inline_asm_elementwise(
                BFLOATS, "=&r,=&r,=&r,=&r,r", [raw], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
            )
        else:
            low, high = tl.inline_asm_elementwise(
                FLOATS, "=&r,=&r,=&r,=&r,r", [raw], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
            )
    return low.to(kind), high.to(kind)


@triton.jit
def columns(place, LAYOUT: tl.constexpr):
    """The columns of the codes, or low halves, in bytes of a row."""
    if LAYOUT == 0:
        return place
    else:
        HALF: tl.constexpr = LAYOUT // 2
        return place // HALF * LAYOUT + place % HALF


@triton.jit
def factors(
    scale_ptr, offset_ptr, row, kept, column, kind: tl.constexpr, IN: tl.constexpr,
    CODE: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, TOTAL: tl.constexpr,
):  # fmt: skip
    """(scales [R, S], offsets) of the groups that columns [S] are in."""
    at = (column // GROUP)[None, :].to(tl.int64) * TOTAL + row[:, None]
    there = kept[:, None] & (column < IN)[None, :]
    scale = tl.load(scale_ptr + at, mask=there, other=0)
    scale = mxfp4_scale(scale) if CODE == "mxfp4" else scale.to(tl.float32)
    shift = scale
    if OFFSET:
        shift = offset_of(tl.load(offset_ptr + at, mask=there, other=0), scale)
    return scale.to(kind), shift.to(kind)


@triton.jit
def by_group(value, scale, shift, OFFSET: tl.constexpr):
    """value [R, B] * scale [R, S] + shift."""
    R: tl.constexpr = value.shape[0]
    B: tl.constexpr = value.shape[1]
    S: tl.constexpr = scale.shape[1]
    value = tl.reshape(value, [R, S, B // S]) * scale[:, :, None]
    if OFFSET:
        value += shift[:, :, None]
    return tl.reshape(value, [R, B])


@triton.jit
def read(
    code_ptr,  # [TOTAL, IN], or bytes of two codes
    scale_ptr,  # [G, TOTAL]
    offset_ptr,  # likewise
    row,  # [R], int64
    kept,  # [R]: whether there is such a row
    start,  # column
    kind: tl.constexpr,
    IN: tl.constexpr,
    BLOCK: tl.constexpr,  # columns: LAYOUT times a whole number
    CODE: tl.constexpr,
    LAYOUT: tl.constexpr,
    GROUP: tl.constexpr,
    SPAN: tl.constexpr,
    SAME: tl.constexpr,
    OFFSET: tl.constexpr,
    TOTAL: tl.constexpr,
    PTX: tl.constexpr,
):
    """Numbers [R, B] of the columns `start + columns(b)`, and of those half a LAYOUT behind, if codes are halves."""
    EACH: tl.constexpr = 1 if LAYOUT == 0 else 2
    B: tl.constexpr = BLOCK // EACH
    place = start // EACH + tl.arange(0, B)
    at = code_ptr + row[:, None] * (IN // EACH) + place[None, :]
    raw = tl.load(at, mask=kept[:, None] & (place < IN // EACH)[None, :], other=0.0)
    low, high = numbers(raw, kind, CODE, PTX)
    if GROUP > 0:
        S: tl.constexpr = 1 if SPAN >= B else B // SPAN
        column = columns(start // EACH + tl.arange(0, S) * SPAN, LAYOUT)
        scale, shift = factors(
            scale_ptr, offset_ptr, row, kept, column, kind, IN, CODE, GROUP, OFFSET, TOTAL
        )  # fmt: skip
        low = by_group(low, scale, shift, OFFSET)
        if LAYOUT > 0:
            if not SAME:
                scale, shift = factors(
                    scale_ptr, offset_ptr, row, kept, column + LAYOUT // 2, kind, IN, CODE, GROUP, OFFSET, TOTAL
                )  # fmt: skip
            high = by_group(high, scale, shift, OFFSET)
    return low, high


@triton.jit
def by_row(sums, scale_ptr, row, kept, CODE: tl.constexpr, GROUP: tl.constexpr):
    """The sums [R] or [R, M] of rows that have one scale each."""
    if CODE != "plain" and GROUP == 0:
        scale = tl.load(scale_ptr + row, mask=kept, other=0.0).to(tl.float32)
        if len(sums.shape) == 2:
            sums *= scale[:, None]
        else:
            sums *= scale
    return sums


def constants(codes: CodeMatrix) -> dict[str, Any]:
    """What the kernels are compiled for."""
    grouped = len(codes.scale_GN) > 1 or codes.offset_GN is not None or codes.kind == "mxfp4"
    even = codes.group & -codes.group
    device = codes.code_NP.device
    return {
        "CODE": codes.kind,
        "LAYOUT": codes.block,
        "GROUP": codes.group if grouped else 0,
        "SPAN": min(even, codes.block // 2) if codes.block else even,
        "SAME": bool(codes.block) and codes.group % codes.block == 0,
        "OFFSET": codes.offset_GN is not None,
        "TOTAL": len(codes.code_NP),
        "PTX": device.type == "cuda" and torch.version.hip is None,
    }
