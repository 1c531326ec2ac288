"""Products of 8-bit integers on a CPU, with the weight laid out once in the blocks that oneDNN's kernels read.

`torch._int_mm` takes the rows as they are: fast for one row of input, and no faster than bfloat16 for more. Packed, the
product takes this part of the time of a packed one in bfloat16 (a core with AVX512-VNNI, 256 x 640 to 4096 x 4096):

                 1 row        4 rows       16 rows      64 rows      256 rows
    _int_mm      0.2 - 0.4    0.6 - 4      0.5 - 1.9    0.5 - 1.0    0.5 - 0.6
    packed       0.2 - 1.3    0.4 - 1.3    0.5 - 0.9    0.4 - 0.7    0.5 - 0.6

Legend: T tokens, N rows (out), K columns (in).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from octavo.kernels.cpu_linear import LARGE, WIDE

ZERO = 128  # oneDNN's fast kernels want unsigned inputs


class PackedInt8:
    """x W^T times a scale for each row of W, for x of whole numbers in [-127, 127]; sums are exact."""

    __slots__ = ("_plain_KN", "_scale_N", "_weight", "_widen", "_zero_N")

    def __init__(self, code_NK: Tensor, scale_N: Tensor) -> None:
        self._scale_N = scale_N.contiguous()
        self._plain_KN: Tensor | None = None
        if not _works():
            self._plain_KN = code_NK.t()
            return
        self._weight = torch.ops.onednn.qlinear_prepack(code_NK, None)
        self._zero_N = torch.zeros(len(code_NK), dtype=torch.int64)
        self._widen = code_NK.numel() >= LARGE[torch.int8]

    def __call__(self, x_TK: Tensor) -> Tensor:
        """[T, N] float32; `x_TK` is float32 and may be changed."""
        if self._plain_KN is not None:
            return torch._int_mm(x_TK.to(torch.int8), self._plain_KN).float().mul_(self._scale_N)
        code_TK = x_TK.add_(ZERO).to(torch.uint8)
        if self._widen and len(code_TK) == 1:
            return _product(code_TK.expand(WIDE, -1), self._weight, self._scale_N, self._zero_N)[:1]
        return _product(code_TK, self._weight, self._scale_N, self._zero_N)


def _product(x_TK: Tensor, weight: Tensor, scale_N: Tensor, zero_N: Tensor) -> Tensor:
    y_TN: Tensor = torch.ops.onednn.qlinear_pointwise.default(
        x_TK, 1.0, ZERO, weight, scale_N, zero_N, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return y_TN


@cache
def _works() -> bool:
    """Tries it with the largest values: the operators are not documented, and without VNNI sums of two products are
    cut off at 16 bits."""
    code_NK = torch.full((16, 64), 127, dtype=torch.int8)
    x_TK = torch.full((3, 64), 255, dtype=torch.uint8)
    x_TK[1] = 1
    try:
        weight = torch.ops.onednn.qlinear_prepack(code_NK, None)
        y_TN = _product(x_TK, weight, torch.ones(16), torch.zeros(16, dtype=torch.int64))
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(y_TN, (x_TK.float() - ZERO) @ code_NK.float().t())
