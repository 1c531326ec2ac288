"""Products of many rows in codes with a matrix in codes, both of 8 bits, in Triton: tensor cores are what counts.

y = x W^T. Integers with a scale for each row of x and of W: sums are exact, and scaled once, as they leave. (torch has
the product without the scales: its sums would be written in 32 bits and read again, ten bytes of memory for two.)

Tiles of x, W and y go through the tensor memory accelerator. Programs that run together share rows of x and of W: they
go through bands of BAND tiles of x, a column of the band after the other, so that what they read is in the cache.

Legend: M rows of x, N rows of W, K columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo.kernels.codes import CodeMatrix, RowCodes

BAND = 8


@dataclass(frozen=True, slots=True)
class Form:
    rows: int  # of x of a program
    outputs: int  # rows of W
    block: int  # of K
    warps: int
    stages: int


@triton.jit(do_not_specialize=["count"])
def many_codes_kernel(
    x_desc,  # [M, K], in boxes of [ROWS, BLOCK]
    code_desc,  # [N, K], in boxes of [OUTPUTS, BLOCK]
    x_scale_ptr,  # [M]
    scale_ptr,  # [N]
    out_desc,  # [M, N], in boxes of [ROWS, OUTPUTS]
    count,  # M
    outputs,  # N
    K: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
    BAND: tl.constexpr,
):
    """A program a tile of y. Boxes are filled up with zeros."""
    across = tl.cdiv(outputs, OUTPUTS)
    band = tl.program_id(0) // (BAND * across)
    place = tl.program_id(0) % (BAND * across)
    height = tl.minimum(BAND, tl.cdiv(count, ROWS) - band * BAND)
    first = (band * BAND + place % height) * ROWS
    first_out = place // height * OUTPUTS
    sums = tl.zeros([ROWS, OUTPUTS], tl.int32)
    for start in tl.range(0, K, BLOCK):
        x = x_desc.load([first, start])
        code = code_desc.load([first_out, start])
        sums = tl.dot(x, tl.trans(code), sums, out_dtype=tl.int32)
    row = first + tl.arange(0, ROWS)
    column = first_out + tl.arange(0, OUTPUTS)
    x_scale = tl.load(x_scale_ptr + row, mask=row < count, other=0.0)
    scale = tl.load(scale_ptr + column, mask=column < outputs, other=0.0).to(tl.float32)
    y = sums.to(tl.float32) * x_scale[:, None] * scale[None, :]
    out_desc.store([first, first_out], y.to(out_desc.dtype))


FORMS = (Form(128, 256, 128, 8, 4), Form(128, 128, 128, 8, 3), Form(128, 64, 128, 4, 4))


def choose(rows: int, outputs: int, processors: int) -> Form:
    """A program takes as long as what it reads of x and of W, and as many run at once as there are processors."""

    def cost(form: Form) -> int:
        tiles = triton.cdiv(rows, form.rows) * triton.cdiv(outputs, form.outputs)
        return triton.cdiv(tiles, processors) * (form.rows + form.outputs)

    return min(FORMS, key=cost)


def many_codes(x: RowCodes, codes: CodeMatrix, *, form: Form) -> Tensor:
    """x W^T as [M, N] in the type of the rows that x was made of."""
    code_MK, (outputs, columns) = x.code_MPE[:, 0], codes.shape
    assert x.code_MPE.shape[1] == 1 and codes.code_NP.dtype == code_MK.dtype == torch.int8
    assert codes.offset_GN is None and len(codes.scale_GN) == 1
    out_MN = torch.empty(len(x), outputs, dtype=x.dtype, device=code_MK.device)
    tiles = triton.cdiv(len(x), form.rows) * triton.cdiv(outputs, form.outputs)
    many_codes_kernel[(tiles,)](
        TensorDescriptor.from_tensor(code_MK, [form.rows, form.block]),
        TensorDescriptor.from_tensor(codes.code_NP, [form.outputs, form.block]),
        x.scale_M,
        codes.scale_GN,
        TensorDescriptor.from_tensor(out_MN, [form.rows, form.outputs]),
        len(x),
        outputs,
        K=columns,
        ROWS=form.rows,
        OUTPUTS=form.outputs,
        BLOCK=form.block,
        BAND=BAND,
        num_warps=form.warps,
        num_stages=form.stages,
    )
    return out_MN
