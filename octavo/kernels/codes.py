"""Quantised matrices, and rows of activations, as the Triton kernels read them.

W = code * scale + offset, with a scale for each row and group of columns. All integers are signed: 4 bits are -8 to 7,
as two's complement. Scales take 16 bits where that loses nothing, and an offset of a whole number of scales a byte.
MXFP4's codes are floats (a sign, two bits of exponent, one of fraction), its scales bytes: exponents plus 127.
Two codes of 4 bits share a byte: in each block of columns the low halves of the bytes are its first columns, the high
halves those behind, so that the inputs that meet a tile of bytes lie side by side in memory. (`octavo.quant.schemes`
has 0 to 15, and [even, odd] columns in a byte.)

x = code * scale, with a scale for each row, or for each group of its columns. Tensor cores multiply codes of 8 bits
twice as fast as 16-bit floats, and need no conversion. A pair has a second code for what the first has lost, which
makes 8 or 16 significant bits: as good as the floats that it stands for.

Legend: N rows, K columns, G groups of a row, P bytes of a row; M rows of x, P parts of theirs (2 of a pair), E columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_BLOCK = 128
MXFP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
FINER = {"fp8": 16, "int8": 256}  # a second part's unit, in the first's
HELD = 4
TYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


@dataclass(frozen=True, slots=True)
class CodeMatrix:
    """`block` is 0 where codes are bytes."""

    kind: str  # fp8, int8, int4 or mxfp4
    code_NP: Tensor  # float8_e4m3fn or int8 [N, K], uint8 [N, K / 2]
    scale_GN: Tensor  # float32, float16 or bfloat16; of mxfp4 uint8
    offset_GN: Tensor | None  # float32; int8: zeros, that is offset = -zero * scale
    block: int

    @classmethod
    def of(cls, code_NP: Tensor, scale_NG: Tensor, offset_NG: Tensor | None) -> CodeMatrix:
        """Of codes as `octavo.quant.schemes` has them."""
        kind, block = "int8" if code_NP.dtype == torch.int8 else "fp8", 0
        middle = 0
        if code_NP.dtype == torch.uint8:
            group = 2 * code_NP.shape[1] // scale_NG.shape[1]
            kind, block, middle = "int4", min(group & -group, LARGEST_BLOCK), 8
            code_NP = repack(code_NP, block) ^ 0x88
            assert offset_NG is not None
        if offset_NG is not None:
            zero_NG = (-offset_NG / scale_NG).round_().clamp_(middle - 128, middle + 127)
            whole = torch.equal(-zero_NG * scale_NG, offset_NG)
            offset_NG = (zero_NG - middle).to(torch.int8) if whole else offset_NG + middle * scale_NG
            if whole and not offset_NG.any():
                offset_NG = None
        offset_GN = None if offset_NG is None else offset_NG.t().contiguous()
        return cls(kind, code_NP, _narrow(scale_NG).t().contiguous(), offset_GN, block)

    @classmethod
    def of_mxfp4(cls, code_NP: Tensor, scale_NG: Tensor) -> CodeMatrix:
        """Of two codes a byte, the even column in the lower half."""
        columns = 2 * code_NP.shape[1]
        block = min(columns & -columns, LARGEST_BLOCK)
        return cls("mxfp4", repack(code_NP, block), scale_NG.t().contiguous(), None, block)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.code_NP), self.code_NP.shape[1] * (2 if self.block else 1)

    @property
    def group(self) -> int:
        return self.shape[1] // len(self.scale_GN)

    @property
    def summed(self) -> int:
        """Columns whose sums of x meet an offset; 0 without offsets."""
        return 0 if self.offset_GN is None else self.block or min(self.group & -self.group, LARGEST_BLOCK)

    @property
    def nbytes(self) -> int:
        offsets = 0 if self.offset_GN is None else self.offset_GN.nbytes
        return self.code_NP.nbytes + self.scale_GN.nbytes + offsets

    def dequantize(self) -> Tensor:
        """W in float32: the reference of the kernels."""
        code = self.code_NP
        if self.kind == "mxfp4":
            parts = code.view(len(code), -1, self.block // 2)
            sized = torch.tensor(MXFP4, device=code.device)[torch.cat((parts & 15, parts >> 4), -1).int()]
            exponents = self.scale_GN.t().int() - 127
            scale_NG = torch.ldexp(torch.ones_like(exponents, dtype=torch.float32), exponents)
            return (sized.view(*scale_NG.shape, -1) * scale_NG[..., None]).flatten(1)
        if self.block:
            parts = (code ^ 0x88).view(len(code), -1, self.block // 2)
            code = torch.cat((parts & 15, parts >> 4), -1).to(torch.int8) - 8
        scale_NG1 = self.scale_GN.t().float()[..., None]
        value = code.float().view(*scale_NG1.shape[:2], -1) * scale_NG1
        if self.offset_GN is not None:
            offset_NG1 = self.offset_GN.t()[..., None]
            value += -scale_NG1 * offset_NG1 if offset_NG1.dtype == torch.int8 else offset_NG1
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


@dataclass(frozen=True, slots=True)
class Rounding:
    """How rows are to be rounded. `scale` is float32 [1], or each row's own is found, or each of its groups'."""

    kind: str  # fp8 or int8
    pair: bool = False
    scale: Tensor | None = None
    group: int = 0  # columns, a power of two; 0: all
    summed: int = 0  # columns, likewise, of which the codes' sums are told; 0: they are not

    @property
    def parts(self) -> int:
        return 2 if self.pair else 1


@dataclass(frozen=True, slots=True)
class RowCodes:
    """Of groups' codes and scales there is memory for rows up to a multiple of HELD, which products ask for."""

    kind: str
    code_MPE: Tensor  # float8_e4m3fn or int8
    scale_M: Tensor  # float32; of groups [G, M]
    dtype: torch.dtype  # of the rows before, and of what comes of them
    sum_BMP: Tensor | None = None  # float32: of the codes of each block of columns

    @classmethod
    def empty(cls, rounding: Rounding, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> RowCodes:
        held = -(-rows // HELD) * HELD if rounding.group else rows
        code_MPE = torch.empty(held, rounding.parts, columns, dtype=TYPES[rounding.kind], device=device)[:rows]
        if rounding.group:
            scale_M = torch.empty(columns // rounding.group, held, device=device)[:, :rows]
        elif rounding.scale is None:
            scale_M = torch.empty(rows, device=device)
        else:
            scale_M = rounding.scale.float().expand(rows).contiguous()
        blocks = columns // rounding.summed if rounding.summed else 0
        sum_BMP = torch.empty(blocks, rows, rounding.parts, device=device) if blocks else None
        return cls(rounding.kind, code_MPE, scale_M, dtype, sum_BMP)

    def __len__(self) -> int:
        return len(self.code_MPE)

    def held(self) -> tuple[Tensor, Tensor]:
        """Codes [M, E] and scales [M, G] of rows in groups, and of those behind, which may be anything."""
        _, parts, columns = self.code_MPE.shape
        groups, rows = len(self.scale_M), self.scale_M.stride(0)
        assert parts == 1
        return self.code_MPE.as_strided((rows, columns), (columns, 1)), self.scale_M.as_strided(
            (rows, groups), (1, rows)
        )

    def dequantize(self) -> Tensor:
        """In float32: what the kernels multiply."""
        unit = torch.tensor([1, 1 / FINER[self.kind]], device=self.scale_M.device)[: self.code_MPE.shape[1]]
        value = (self.code_MPE.float() * unit[:, None]).sum(1)
        scale_MG = self.scale_M.view(-1, len(self)).t() if self.scale_M.dim() == 1 else self.scale_M.t()
        return value * scale_MG.repeat_interleave(value.shape[1] // scale_MG.shape[1], 1)
