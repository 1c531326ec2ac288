"""Products of rows with 4-bit weights on a CPU: torch's kernel for few rows, decoded tile by tile for many.

torch's kernel makes floats of the codes again for each few rows, and has no vectors for float32. So for many rows, and
in float32, the codes of TILE rows of W at a time become floats, which stay in a core's cache until the product has read
them. The codes are read as torch packs them: a copy would double what a model takes.

Part of the time of a plain product, packed for oneDNN (a core with AVX512-VNNI, 2048 x 2048 to 4096 x 14336):

                          16 rows      64 rows      128 rows     256 rows     1024 rows
    bfloat16, torch       1.6 - 2.0    2.2 - 2.5    2.5 - 3.0    2.5 - 3.6    2.5 - 2.7
    bfloat16, in tiles    4.3 - 6.3    2.2 - 3.5    1.7 - 2.0    1.4 - 1.6    0.9 - 1.6
    float32, torch        64 - 74      90           90 - 96      90 - 95      97
    float32, in tiles     2.2 - 2.9    1.7 - 1.8    1.5 - 1.8    1.4 - 1.5    1.4 - 1.5

Legend: T tokens, N rows (out), K columns (in), G groups of a row, B tiles, W rows of W in a tile, P bytes of a column.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

TILE = 64
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
        if len(x_TK) >= MANY_ROWS[x_TK.dtype] and len(self._packed) % TILE == 0 and _layout_is_known():
            return self._of_many(x_TK)
        y_TN: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x_TK, self._packed, self.group, self.scale_GN2)
        return y_TN

    def _of_many(self, x_TK: Tensor) -> Tensor:
        (rows, columns), groups = x_TK.shape, len(self.scale_GN2)
        byte_BKP = self._packed.view(-1, columns, TILE // 2)
        scale_B2GW = self.scale_GN2.view(groups, -1, TILE, 2).permute(1, 3, 0, 2).float().contiguous()
        y_TN = x_TK.new_empty(rows, len(self._packed))
        weight_KW = torch.empty(columns, TILE, dtype=torch.float32)
        of_group = weight_KW.view(groups, self.group, TILE)
        for tile, (byte_KP, (scale_GW, middle_GW)) in enumerate(zip(byte_BKP, scale_B2GW, strict=True)):
            decode_halves(byte_KP, weight_KW)
            least_GW = middle_GW - 8 * scale_GW
            torch.addcmul(least_GW[:, None], of_group, scale_GW[:, None], out=of_group)
            torch.mm(x_TK, weight_KW.to(x_TK.dtype), out=y_TN[:, tile * TILE : (tile + 1) * TILE])
        return y_TN


def decode_halves(byte_KP: Tensor, code_KW: Tensor) -> None:
    """The codes of a tile: row i is in the lower half of byte i, or in the upper one of byte i - TILE / 2."""
    code_KW[:, : TILE // 2].copy_(byte_KP & 15)
    code_KW[:, TILE // 2 :].copy_(byte_KP >> 4)


@cache
def _layout_is_known() -> bool:
    """Whether torch packs here as `decode_halves` reads: it depends on the CPU, and is not documented."""
    code_NK = torch.randint(0, 16, (2 * TILE, 64), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(code_NK, 1)
    code_BKW = torch.empty(2, 64, TILE, dtype=torch.float32)
    for byte_KP, code_KW in zip(packed.view(2, 64, TILE // 2), code_BKW, strict=True):
        decode_halves(byte_KP, code_KW)
    return torch.equal(code_BKW.transpose(1, 2).reshape(2 * TILE, 64), code_NK.float())
