"""Feed-forward layers: gated, activation(gate) * up projected down, or plain, activation(up) projected down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo import kernels
from octavo.layers.linear import Linear, MergedLinear
from octavo.layers.norm import Norm

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square_(),
}


class GatedMLP:
    __slots__ = ("activate", "activation", "down", "gate_up", "kernels")

    def __init__(
        self,
        hidden_size: int,
        inner_size: int,
        activation: str,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.gate_up = MergedLinear(hidden_size, (inner_size, inner_size), bias, dtype, device)
        self.down = Linear(inner_size, hidden_size, bias, dtype, device)
        self.activation = activation
        self.activate = ACTIVATIONS[activation]
        self.kernels = kernels.elementwise_for(device)

    def finish(self) -> None:
        self.gate_up.finish()
        self.down.finish()

    def __call__(self, x_TE: Tensor) -> Tensor:
        return self.behind(self.gate_up(x_TE))

    def after(self, norm: Norm, x_TE: Tensor, stream_TE: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.activation == "silu":
            fused = self.gate_up.fused_after(norm, x_TE, stream_TE, silu=True)
            if fused is not None:
                return self.down(fused[0]), fused[1]
        gate_up_TF, stream_TE = self.gate_up.after(norm, x_TE, stream_TE)
        return self.behind(gate_up_TF), stream_TE

    def behind(self, gate_up_TF: Tensor) -> Tensor:
        if self.kernels is None:
            gate, up = gate_up_TF.chunk(2, -1)
            return self.down(self.activate(gate).mul_(up))
        rounding = self.down.rounding(len(gate_up_TF))
        if rounding is not None:
            return self.down.of_codes(self.kernels.gate_codes(gate_up_TF, self.activation, rounding))
        return self.down(self.kernels.gate(gate_up_TF, self.activation))

    def linears(self) -> tuple[Linear, ...]:
        """Whose weights may be quantised."""
        return self.gate_up, self.down

    def names(self, at: Mapping[str, str]) -> dict[str, Tensor]:
        """`at` has the paths of gate and up, or of gate_up where a checkpoint has them in one."""
        if "gate_up" in at:
            found = Linear.names(self.gate_up, at["gate_up"])
        else:
            found = self.gate_up.names(at["gate"], at["up"])
        return found | self.down.names(at["down"])


class MLP:
    __slots__ = ("activate", "down", "up")

    def __init__(
        self,
        hidden_size: int,
        inner_size: int,
        activation: str,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.up = Linear(hidden_size, inner_size, bias, dtype, device)
        self.down = Linear(inner_size, hidden_size, bias, dtype, device)
        self.activate = ACTIVATIONS[activation]

    def finish(self) -> None:
        self.up.finish()
        self.down.finish()

    def __call__(self, x_TE: Tensor) -> Tensor:
        return self.down(self.activate(self.up(x_TE)))

    def after(self, norm: Norm, x_TE: Tensor, stream_TE: Tensor | None) -> tuple[Tensor, Tensor]:
        x_TE, stream_TE = norm(x_TE, stream_TE)
        return self(x_TE), stream_TE

    def linears(self) -> tuple[Linear, ...]:
        return self.up, self.down

    def names(self, at: Mapping[str, str]) -> dict[str, Tensor]:
        return self.up.names(at["up"]) | self.down.names(at["down"])
