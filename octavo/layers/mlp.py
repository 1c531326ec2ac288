"""The gated feed-forward layer: silu(gate) * up, projected down."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo import kernels
from octavo.layers.linear import Linear, MergedLinear


class SwiGLU:
    __slots__ = ("down", "gate_up", "kernels")

    def __init__(self, hidden_size: int, inner_size: int, bias: bool, dtype: torch.dtype, device: torch.device) -> None:
        self.gate_up = MergedLinear(hidden_size, (inner_size, inner_size), bias, dtype, device)
        self.down = Linear(inner_size, hidden_size, bias, dtype, device)
        self.kernels = kernels.elementwise_for(device)

    def finish(self) -> None:
        self.gate_up.finish()
        self.down.finish()

    def __call__(self, x_TE: Tensor) -> Tensor:
        gate_up_TF = self.gate_up(x_TE)
        if self.kernels is not None:
            return self.down(self.kernels.silu_mul(gate_up_TF))
        gate, up = gate_up_TF.chunk(2, -1)
        return self.down(F.silu(gate).mul_(up))
