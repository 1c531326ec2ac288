"""Quantised matrices as the Triton kernels read them.

W = code * scale + offset, with a scale for each row and group of columns. Scales take 16 bits where that loses nothing,
and an offset of a whole number of scales a byte. Two codes of 4 bits share a byte: in each
block of columns the low halves of the bytes are its first columns, the high halves those behind, so that the inputs
that meet a tile of bytes lie side by side in memory. (Checkpoints here have [even, odd] columns in a byte.)

Legend: N rows, K columns, G groups of a row, P bytes of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_BLOCK = 128


@dataclass(frozen=True, slots=True)
class CodeMatrix:
    """`block` is 0 where codes are bytes. 4 bits without offsets stand for -8 to 7, with offsets for 0 to 15."""

    kind: str  # fp8, int8 or int4
    code_NP: Tensor  # float8_e4m3fn or int8 [N, K], uint8 [N, K / 2]
    scale_NG: Tensor  # float32, float16 or bfloat16
    offset_NG: Tensor | None  # float32; uint8: zeros, that is offset = -zero * scale
    block: int

    @classmethod
    def of(cls, code_NP: Tensor, scale_NG: Tensor, offset_NG: Tensor | None) -> CodeMatrix:
        """Of codes as `octavo.quant.schemes` has them."""
        if offset_NG is not None:
            zero_NG = (-offset_NG / scale_NG).round_().clamp_(0, 255)
            if torch.equal(-zero_NG * scale_NG, offset_NG):
                offset_NG = zero_NG.to(torch.uint8)
        kind, block = "int8" if code_NP.dtype == torch.int8 else "fp8", 0
        if code_NP.dtype == torch.uint8:
            group = 2 * code_NP.shape[1] // scale_NG.shape[1]
            kind, block = "int4", min(group & -group, LARGEST_BLOCK)
            code_NP = repack(code_NP, block)
            if offset_NG is not None and offset_NG.dtype == torch.uint8 and bool((offset_NG == 8).all()):
                offset_NG = None
        return cls(kind, code_NP, _narrow(scale_NG), offset_NG, block)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.code_NP), self.code_NP.shape[1] * (2 if self.block else 1)

    @property
    def group(self) -> int:
        return self.shape[1] // self.scale_NG.shape[1]

    @property
    def nbytes(self) -> int:
        offsets = 0 if self.offset_NG is None else self.offset_NG.nbytes
        return self.code_NP.nbytes + self.scale_NG.nbytes + offsets

    def dequantize(self) -> Tensor:
        """W in float32: the reference of the kernels."""
        code = self.code_NP
        if self.block:
            parts = code.view(len(code), -1, self.block // 2)
            code = torch.cat((parts & 15, parts >> 4), -1)
        value = code.float().view(*self.scale_NG.shape, -1)
        if self.block and self.offset_NG is None:
            value -= 8
        scale_NG1 = self.scale_NG.float()[..., None]
        value *= scale_NG1
        if self.offset_NG is not None:
            zeros = self.offset_NG.dtype == torch.uint8
            value += -scale_NG1 * self.offset_NG[..., None] if zeros else self.offset_NG[..., None]
        return value.flatten(1)


def _narrow(scale: Tensor) -> Tensor:
    for dtype in (torch.float16, torch.bfloat16):
        narrow = scale.to(dtype)
        if torch.equal(narrow.float(), scale):
            return narrow
    return scale


def repack(code_NP: Tensor, block: int) -> Tensor:
    """Bytes of (even column, odd column) as bytes of (column p, column p + block / 2) of each block."""
    code = torch.stack((code_NP & 15, code_NP >> 4), -1).view(len(code_NP), -1, 2, block // 2)
    return (code[:, :, 0] | code[:, :, 1] << 4).flatten(1)
