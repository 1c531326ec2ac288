"""Linear layers on a CPU, with the weight laid out once in the blocks that oneDNN's kernels read.

`F.linear` takes the checkpoint's rows as they are, and with few rows of input it spends more time on gathering them
than on arithmetic. Packed, the product takes this part of its time (bench/cpu_kernels.py, weights of 256 x 384 to
11264 x 2048):

                 1 row        4 rows       16 rows      64 rows
    bfloat16     0.4 - 0.75   0.3 - 0.75   0.6 - 0.85   0.8 - 0.95
    float32      0.5 - 1.05   0.3 - 0.5    0.4 - 0.7    0.6 - 0.8      from a million elements

The packed weight replaces the given one: let go of that, and memory holds one copy. A weight that is also an
embedding must be kept for its lookups, so packing it takes its size again.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 256  # a hint to oneDNN; one layout serves every number of rows

# oneDNN 3.12 reads a large weight more slowly for one row than for four: at 0.8 to 0.9 of the rate.
WIDE = 4
LARGE = {torch.bfloat16: 1 << 22, torch.float32: 1 << 20, torch.int8: 1 << 22}

# With 512 rows or more a small float32 matrix takes 0.87 of the time too, packed (384 x 1536, one core of an EPYC).
# A small float32 matrix times one row is where `F.linear` wins, by the 10 microseconds that oneDNN takes to start.
LEAST = {torch.bfloat16: 0, torch.float32: 1 << 20}


class PackedLinear:
    """y = x W^T + b for x of [..., in]. Made by `pack_linear`."""

    __slots__ = ("_packed", "_product", "_widen", "in_size", "out_size")

    def __init__(self, weight: Tensor) -> None:
        self.out_size, self.in_size = weight.shape
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        self._product = torch.ops.mkldnn._linear_pointwise.default
        self._widen = weight.numel() >= LARGE[weight.dtype]

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if self._widen and x.numel() == self.in_size:
            wide = self._product(x.reshape(1, -1).expand(WIDE, -1), self._packed, bias, "none", [], "")
            return wide[0].view(*x.shape[:-1], self.out_size)
        return self._product(x, self._packed, bias, "none", [], "")

    def weight(self) -> Tensor:
        """The weight as it was given, in new memory."""
        return self._packed.to_dense()


def pack_linear(weight: Tensor, many_rows: bool = False) -> PackedLinear | None:
    """None where `F.linear` is the better or the only way. `many_rows`: x has hundreds, always."""
    least = 0 if many_rows and weight.dtype in LEAST else LEAST.get(weight.dtype)
    if weight.device.type != "cpu" or least is None or weight.numel() < least:
        return None
    return PackedLinear(weight) if _works(weight.dtype) else None


@cache
def _works(dtype: torch.dtype) -> bool:
    """Tries it: the operators are torch's own but not documented, and need a CPU that oneDNN knows."""
    weight = torch.linspace(-1, 1, 64 * 32, dtype=dtype).view(64, 32)
    x, bias = torch.linspace(-2, 1, 3 * 32, dtype=dtype).view(3, 32), torch.linspace(0, 1, 64, dtype=dtype)
    try:
        y = PackedLinear(weight)(x, bias)
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(y, F.linear(x, weight, bias), rtol=0.02, atol=0.02)
