"""From hidden states to what is asked for: which tokens stand for a text, and small layers on top of them.

All of it is in float32: it is little work, and embeddings are compared by small differences.

Legend: T tokens of the step, N sequences, E hidden, F what comes out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.layers.linear import Linear
from octavo.layers.norm import LayerNorm
from octavo.models.pooling.files import Method

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "softmax": lambda x: x.softmax(-1),
}


def pool(hidden_TE: Tensor, start_N1: Tensor, method: Method) -> Tensor:
    """One row for each sequence, [N, E] in float32; sequence i owns the tokens [start[i], start[i + 1])."""
    if method == "cls":
        return hidden_TE[start_N1[:-1]].float()
    if method == "last":
        return hidden_TE[start_N1[1:] - 1].float()
    lengths_N = start_N1.diff()
    owner_T = torch.repeat_interleave(lengths_N, output_size=len(hidden_TE))
    sums_NE = torch.zeros(len(lengths_N), hidden_TE.shape[1], device=hidden_TE.device)
    return sums_NE.index_add_(0, owner_T, hidden_TE.float()) / lengths_N[:, None]


class Dense:
    """A linear layer and what follows it."""

    def __init__(
        self, path: str, in_size: int, out_size: int, bias: bool, activation: str, device: torch.device
    ) -> None:
        self.path = path
        self.linear = Linear(in_size, out_size, bias, torch.float32, device)
        self.activate = ACTIVATIONS[activation]

    def __call__(self, x_NE: Tensor) -> Tensor:
        return self.activate(self.linear(x_NE))

    def finish(self) -> None:
        self.linear.finish()

    def names(self) -> dict[str, Tensor]:
        return self.linear.names(self.path)


class Norm:
    """A layer norm between dense layers."""

    def __init__(self, path: str, size: int, eps: float, bias: bool, device: torch.device) -> None:
        self.path = path
        self.norm = LayerNorm(size, eps, bias, torch.float32, device)

    def __call__(self, x_NE: Tensor) -> Tensor:
        return self.norm(x_NE)[0]

    def finish(self) -> None:
        self.norm.finish()

    def names(self) -> dict[str, Tensor]:
        return self.norm.names(self.path)


Head = list[Dense | Norm]
