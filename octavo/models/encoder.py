"""Encoders: what a family of them is beside `Decoder`. A token sees all others, and nothing is generated.

Embeddings are normed, and positions may be embeddings that are added to those of the tokens, as may be which of two
texts a token is of.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from octavo.attention.base import ForwardBatch
from octavo.layers.embedding import Embedding
from octavo.layers.norm import Norm
from octavo.models.decoder import Decoder
from octavo.models.pooling.heads import Head
from octavo.models.spec import ModelSpec


class Encoder(Decoder):
    unused: ClassVar[tuple[str, ...]] = ()  # what names of tensors begin with that only classifiers need
    first_position: ClassVar[int] = 0  # row of the first token's position

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, device: torch.device, max_len: int) -> None:
        super().__init__(spec, dtype, device, max_len)
        self.embed_norm: Norm = self.make_norm()
        shape = (spec.hidden_size, dtype, device)
        self.positions = self.types = None
        if all(rope is None for rope in spec.ropes):
            self.positions = Embedding(self.first_position + spec.max_position, *shape)
        if spec.type_vocab_size:
            self.types = Embedding(spec.type_vocab_size, *shape)

    @property
    def names(self) -> dict[str, Tensor]:
        found = super().names | self.embed_norm.names(self.paths["embed_norm"])
        if self.positions is not None:
            found |= self.positions.names(self.paths["positions"])
        return found if self.types is None else found | self.types.names(self.paths["types"])

    def finish(self) -> None:
        super().finish()
        self.embed_norm.finish()

    def embed_tokens(self, batch: ForwardBatch) -> Tensor:
        x_TE = super().embed_tokens(batch)
        if self.types is not None:
            # Some tokenizers tell texts apart that the model does not.
            types_T = batch.types_T if self.spec.type_vocab_size > 1 else None
            x_TE += self.types.weight_VE[0] if types_T is None else self.types(types_T)
        if self.positions is not None:
            x_TE += self.positions(batch.positions_T + self.first_position)
        return self.embed_norm(x_TE)[0]

    def make_classifier(self, labels: int) -> Head:
        """What comes after the pooled hidden state."""
        raise NotImplementedError
