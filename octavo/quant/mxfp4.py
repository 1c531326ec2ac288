"""MXFP4, as OCP has it: 32 numbers of 4 bits (a sign, two bits of exponent, one of fraction) share a power of two.

A checkpoint keeps a row of n numbers as blocks [n / 32, 16] of bytes, the even number in the lower half of each, and
scales [n / 32] of bytes: the exponent plus 127. What comes out is exact in bfloat16 and in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32  # numbers of a scale
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
BIAS = 127


def decode(blocks: Tensor, scales: Tensor, out: Tensor) -> Tensor:
    """Fills `out` [X, R, n] from blocks [X, R, n / 32, 16] and scales [X, R, n / 32], an expert at a time."""
    values = torch.tensor(VALUES + tuple(-value for value in VALUES), dtype=out.dtype, device=blocks.device)
    for row, packed, exponents in zip(out, blocks, scales, strict=True):
        halves = torch.stack((packed & 15, packed >> 4), -1).flatten(-2)
        factors = torch.ldexp(torch.ones_like(exponents, dtype=torch.float32), exponents.int() - BIAS)
        row.copy_((values[halves.int()] * factors[..., None]).flatten(-2))
    return out
