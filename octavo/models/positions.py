"""Positions that are learned: a table of them is added to the embeddings, and nothing rotates."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from octavo.attention.base import ForwardBatch
from octavo.layers.embedding import Embedding
from octavo.models.decoder import Decoder
from octavo.models.spec import ModelSpec


class LearnedPositions(Decoder):
    """`paths` says where the table is. `first`: its row for the first position."""

    first: ClassVar[int] = 0

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, device: torch.device, max_len: int) -> None:
        super().__init__(spec, dtype, device, max_len)
        self.positions = Embedding(spec.max_position + self.first, spec.hidden_size, dtype, device)

    @property
    def names(self) -> dict[str, Tensor]:
        return super().names | self.positions.names(self.paths["positions"])

    def embed_tokens(self, batch: ForwardBatch) -> Tensor:
        positions_T = batch.positions_T + self.first if self.first else batch.positions_T
        return super().embed_tokens(batch).add_(self.positions(positions_T))
