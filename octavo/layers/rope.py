"""Rotary position embedding: of a head's first R sizes, each pair turns by position * its frequency.

Pairs are (i, i + R/2), or with `interleaved` (2 i, 2 i + 1). Cosines and sines are computed in float32, once for
every position served, then kept in the model's dtype. A pass gathers the rows of its positions once (`rows`); every
layer turns its queries and keys, in one call, by them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo import kernels

Rotation = tuple[Tensor, Tensor]  # cosines and signed sines of the tokens, each [T, 1, D]


class Rope:
    __slots__ = ("half", "head_dim", "interleaved", "kernels", "table_P1D")

    def __init__(
        self,
        frequencies: Tensor,
        scale: float,
        head_dim: int,
        max_len: int,
        dtype: torch.dtype,
        device: torch.device,
        interleaved: bool = False,
    ) -> None:
        self.head_dim = head_dim
        self.half = len(frequencies)
        self.interleaved = interleaved
        self.kernels = kernels.elementwise_for(device)
        positions = torch.arange(max_len, dtype=torch.float32, device=device)
        angles = positions[:, None] * frequencies.to(device)
        cos, sin = (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)
        # What is not rotated is multiplied by one. The sine of a pair's first is negative: (a, b) turns to
        # (a cos - b sin, b cos + a sin), which is x * cos + swapped x * signed sin.
        rest = cos.new_ones(max_len, head_dim - 2 * self.half)
        parts = ((cos, cos), (-sin, sin))
        cosines, sines = ((torch.stack(p, -1).flatten(1) if interleaved else torch.cat(p, 1)) for p in parts)
        self.table_P1D = torch.cat((cosines, rest, sines, 0 * rest), dim=1).unsqueeze(1)  # D holds both

    def rows(self, positions_T: Tensor) -> Rotation:
        cos_T1D, sin_T1D = self.table_P1D.index_select(0, positions_T).chunk(2, -1)
        return cos_T1D, sin_T1D

    def __call__(self, x_TJD: Tensor, rotation: Rotation) -> Tensor:
        cos_T1D, sin_T1D = rotation
        half = self.half
        if self.interleaved:
            turned, rest = x_TJD.split_with_sizes((2 * half, self.head_dim - 2 * half), -1)
            swapped_TJD = torch.cat((turned.reshape(*turned.shape[:-1], half, 2).flip(-1).flatten(-2), rest), -1)
        elif 2 * half == self.head_dim:
            swapped_TJD = x_TJD.roll(half, -1)
        else:
            a, b, rest = x_TJD.split_with_sizes((half, half, self.head_dim - 2 * half), -1)
            swapped_TJD = torch.cat((b, a, rest), -1)
        return (x_TJD * cos_T1D).addcmul_(swapped_TJD, sin_T1D)
