"""MXFP4, as OCP has it: 32 numbers of 4 bits (a sign, two bits of exponent, one of fraction) share a power of two.

A checkpoint keeps a row of n numbers as blocks [n / 32, 16] of bytes, the even number in the lower half of each, and
scales [n / 32] of bytes: the exponent plus 127. What comes out is exact in bfloat16 and in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.codes import MXFP4
from octavo.quant.schemes import Scheme, grouped, unpack_halves

BLOCK = 32  # numbers of a scale
BIAS = 127


@dataclass(frozen=True, slots=True)
class Mxfp4(Scheme):
    kind = "mxfp4"
    code_NP: Tensor  # uint8 [N, K / 2]
    scale_NG: Tensor  # uint8 [N, K / 32]

    @property
    def shape(self) -> tuple[int, int]:
        return self.code_NP.shape[0], self.code_NP.shape[1] * 2

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        values = torch.tensor(MXFP4, device=self.code_NP.device)
        ones = torch.ones_like(self.scale_NG, dtype=torch.float32)
        scale_NG = torch.ldexp(ones, self.scale_NG.int() - BIAS)
        return grouped(values[unpack_halves(self.code_NP).int()], scale_NG).to(dtype)
