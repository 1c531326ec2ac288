"""Products of rows with 4-bit weights on a CPU: torch's kernel for few rows, decoded tile by tile for many.

torch's kernel makes floats of the codes again for each few rows, and has no vectors for float32. So for many rows, and
in float32, the codes of some rows of W at a time become floats, which stay near to the core until the product has read
them. The codes are read as torch packs them: a copy would double what a model takes.

Part of the time of a plain product, packed for oneDNN (two cores with AVX512-VNNI, 2048 x 2048 to 11264 x 2048):

                          16 rows      64 rows      128 rows     256 rows     1024 rows
    bfloat16, torch       1.4 - 1.8    2.2 - 2.5    2.3 - 2.6    2.4 - 2.7    2.4 - 2.8
    bfloat16, in tiles    4.9 - 5.9    2.1 - 2.8    1.7 - 2.0    1.4 - 1.7    1.2 - 1.3
    float32, torch        64 - 74      90           90 - 96      90 - 95      97
    float32, in tiles     3.4 - 3.7    1.9 - 2.0                 1.4 - 1.5    1.3

Legend: T tokens, N rows (out), K columns (in), G groups of a row, B blocks, W rows of a block, P bytes of a column.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

BLOCK = 64  # rows of W that torch packs together
TILE = 4  # blocks that are decoded together: less takes longer for its calls, more leaves the cache
MANY_ROWS = {torch.bfloat16: 96, torch.float32: 1}  # of x, from which on decoding is the faster way


class PackedInt4:
    """x W^T for W = (code - 8) * scale + middle, with codes of 0 to 15; scales and middles in the type of x."""

    __slots__ = ("_packed", "group", "scale_GN2")

    def __init__(self, code_NK: Tensor, scale_NG: Tensor, middle_NG: Tensor, dtype: torch.dtype) -> None:
        self.group = code_NK.shape[1] // scale_NG.shape[1]
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(code_NK.int(), 1)
        self.scale_GN2 = torch.stack((scale_NG.t(), middle_NG.t()), -1).to(dtype).contiguous()

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes + self.scale_GN2.nbytes

    def __call__(self, x_TK: Tensor) -> Tensor:
        if len(x_TK) >= MANY_ROWS[x_TK.dtype] and len(self._packed) % BLOCK == 0 and _layout_is_known():
            return self._of_many(x_TK)
        y_TN: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x_TK, self._packed, self.group, self.scale_GN2)
        return y_TN

    def _of_many(self, x_TK: Tensor) -> Tensor:
        (rows, columns), groups = x_TK.shape, len(self.scale_GN2)
        byte_BKP = self._packed.view(-1, columns, BLOCK // 2)
        scale_GN, middle_GN = self.scale_GN2.permute(2, 0, 1).float().contiguous()
        least_GN = middle_GN - 8 * scale_GN
        y_TN = x_TK.new_empty(rows, len(self._packed))
        memory = torch.empty(columns * TILE * BLOCK, dtype=torch.float32)
        for first in range(0, len(byte_BKP), TILE):
            tile_BKP = byte_BKP[first : first + TILE]
            within = slice(first * BLOCK, (first + len(tile_BKP)) * BLOCK)
            weight_KBW = memory[: columns * len(tile_BKP) * BLOCK].view(columns, -1, BLOCK)
            decode_halves(tile_BKP, weight_KBW)
            of_group = weight_KBW.view(groups, self.group, -1)
            torch.addcmul(least_GN[:, None, within], of_group, scale_GN[:, None, within], out=of_group)
            torch.mm(x_TK, weight_KBW.view(columns, -1).to(x_TK.dtype), out=y_TN[:, within])
        return y_TN


def decode_halves(byte_BKP: Tensor, code_KBW: Tensor) -> None:
    """The codes of blocks: row i is in the lower half of byte i, or in the upper one of byte i - BLOCK / 2."""
    byte_KBP = byte_BKP.transpose(0, 1)
    code_KBW[..., : BLOCK // 2].copy_(byte_KBP & 15)
    code_KBW[..., BLOCK // 2 :].copy_(byte_KBP >> 4)


@cache
def _layout_is_known() -> bool:
    """Whether torch packs here as `decode_halves` reads: it depends on the CPU, and is not documented."""
    code_NK = torch.randint(0, 16, (2 * BLOCK, 64), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(code_NK, 1)
    code_KBW = torch.empty(64, 2, BLOCK, dtype=torch.float32)
    decode_halves(packed.view(2, 64, BLOCK // 2), code_KBW)
    return torch.equal(code_KBW.view(64, -1).t(), code_NK.float())
