"""Token embedding and the head that turns hidden states into logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.layers.linear import Linear


class Embedding:
    """`scale` multiplies what is looked up; it is rounded to the dtype first, as in transformers."""

    __slots__ = ("scale", "weight_VE")

    def __init__(
        self, vocab_size: int, hidden_size: int, dtype: torch.dtype, device: torch.device, scale: float = 1.0
    ) -> None:
        self.weight_VE = torch.empty(vocab_size, hidden_size, dtype=dtype, device=device)
        self.scale = float(torch.tensor(scale, dtype=dtype))

    def __call__(self, token_ids_T: Tensor) -> Tensor:
        x_TE = F.embedding(token_ids_T, self.weight_VE)
        return x_TE if self.scale == 1.0 else x_TE.mul_(self.scale)

    def names(self, path: str) -> dict[str, Tensor]:
        return {f"{path}.weight": self.weight_VE}


class LMHead(Linear):
    """Logits in the model's type: the sampler widens what it computes with. Tied, it owns no matrix of its own."""

    __slots__ = ()

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
        tied: Embedding | None,
        bias: bool = False,
    ) -> None:
        super().__init__(hidden_size, vocab_size, bias, dtype, device)
        if tied is not None:
            self.weight = tied.weight_VE
