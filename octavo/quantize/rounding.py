"""Grids of numbers that a matrix may have once it is quantised, and rounding to the nearest of them.

A scale is rounded to the type that it is stored in before anything is divided by it, so that codes fit what readers
multiply them with.

Legend: N rows (out), K columns (in), G groups of a row, C columns of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.quant.pack import E4M3_MAX
from octavo.quant.schemes import E4M3

LEAST = 1e-10  # of scales


@dataclass(frozen=True, slots=True)
class Steps:
    """Where a grid's numbers lie: (code - zero) * scale."""

    scale_NG: Tensor  # float32, of values that the stored type has
    zero_NG: Tensor | None = None  # float32, whole numbers

    def of(self, group: int) -> Steps:
        """Of one group, [N, 1]."""
        at = slice(group, group + 1)
        return Steps(self.scale_NG[:, at], None if self.zero_NG is None else self.zero_NG[:, at])


@dataclass(frozen=True, slots=True)
class Rounded:
    """[N, K]: a matrix's codes, signed integers or float8_e4m3fn, and its steps."""

    code_NK: Tensor
    steps: Steps

    def dequantize(self) -> Tensor:
        """[N, K] in float32."""
        rows, columns = self.code_NK.shape
        scale_NG, zero_NG = self.steps.scale_NG, self.steps.zero_NG
        wide_NGC = self.code_NK.float().view(rows, scale_NG.shape[1], -1)
        if zero_NG is not None:
            wide_NGC = wide_NGC - zero_NG[..., None]
        return (wide_NGC * scale_NG[..., None]).view(rows, columns)


@dataclass(frozen=True, slots=True)
class Grid:
    """`group`: columns that share a scale; None: all of a row, 0: the whole matrix."""

    bits: int
    floating: bool = False
    group: int | None = None
    symmetric: bool = True

    @property
    def low(self) -> int:
        """Rows of 8 bits do without -128, so that products can be negated."""
        return -(1 << self.bits - 1) if self.bits < 8 or not self.symmetric else -127

    @property
    def high(self) -> int:
        return (1 << self.bits - 1) - 1

    def fits(self, columns: int) -> bool:
        return not self.group or columns % self.group == 0

    def steps(self, weight_NK: Tensor, dtype: torch.dtype) -> Steps:
        """For a matrix or some of its columns: the largest value of each group is on the grid, or half a step above."""
        rows, columns = weight_NK.shape
        wide_NGC = weight_NK.float().view(rows, -1, self.group or columns)
        if self.floating:
            largest_NG = wide_NGC.abs().amax(2)
            if self.group == 0:
                largest_NG = largest_NG.amax().expand(rows, 1)
            return Steps(_stored(largest_NG / E4M3_MAX, dtype))
        if self.symmetric:
            return Steps(_stored(wide_NGC.abs().amax(2) * (2 / (self.high - self.low)), dtype))
        low_NG, high_NG = wide_NGC.amin(2).clamp_(max=0), wide_NGC.amax(2).clamp_(min=0)
        scale_NG = _stored((high_NG - low_NG) / (self.high - self.low), dtype)
        return Steps(scale_NG, (self.low - low_NG / scale_NG).round_().clamp_(self.low, self.high))

    def codes(self, wide_NGC: Tensor, steps: Steps) -> Tensor:
        """float32; the shape is that of `wide`, whose second dimension is that of the steps."""
        code = wide_NGC / steps.scale_NG[..., None]
        if self.floating:
            return code.clamp_(-E4M3_MAX, E4M3_MAX).to(E4M3).float()
        if steps.zero_NG is not None:
            code += steps.zero_NG[..., None]
        return code.round_().clamp_(self.low, self.high)

    def round(self, weight_NK: Tensor, dtype: torch.dtype) -> Rounded:
        steps = self.steps(weight_NK, dtype)
        rows, columns = weight_NK.shape
        code = self.codes(weight_NK.float().view(rows, steps.scale_NG.shape[1], -1), steps).view(rows, columns)
        return Rounded(self.pack(code), steps)

    def pack(self, code_NK: Tensor) -> Tensor:
        return code_NK.to(E4M3 if self.floating else torch.int8)


def _stored(scale_NG: Tensor, dtype: torch.dtype) -> Tensor:
    least = max(LEAST, torch.finfo(dtype).tiny)
    return scale_NG.clamp(min=least).to(dtype).float()
