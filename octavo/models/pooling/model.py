"""A model that reads: a decoder without its head or an encoder, and what pools its hidden states.

Legend: T tokens of the step, N sequences, E hidden, F what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.attention.base import ForwardBatch
from octavo.core.errors import ModelError
from octavo.core.pooling import PoolingParams
from octavo.layers.linear import Linear
from octavo.layers.moe import Experts
from octavo.models.decoder import Decoder
from octavo.models.encoder import Encoder
from octavo.models.pooling.files import PoolingSpec
from octavo.models.pooling.heads import ACTIVATIONS, Dense, Head, pool
from octavo.models.spec import ModelSpec

HEADS = ("classifier.", "pre_classifier.", "score.", "head.")  # what names of heads begin with
UNUSED = ("lm_head.", "cls.")  # of those that predict words


@dataclass(frozen=True, slots=True)
class Part:
    """Tensors that a folder of their own has."""

    spec: ModelSpec
    device: torch.device
    names: dict[str, Tensor]

    def rename(self, name: str) -> str:
        return name


class NoHead:
    """In place of a decoder's: nothing is generated, so there are no logits."""

    packed = None

    def names(self, path: str) -> dict[str, Tensor]:
        return {}

    def finish(self) -> None:
        """Nothing."""


class PoolingModel:
    """`names` and what else a loader needs are those of the backbone, and of the head if there is one."""

    def __init__(self, backbone: Decoder, pooling: PoolingSpec) -> None:
        self.backbone, self.pooling = backbone, pooling
        self.spec, self.dtype, self.device = backbone.spec, backbone.dtype, backbone.device
        self.num_bytes = 0  # of the weights; known after finish()
        for linear in backbone.linears():
            linear.many_rows = True
        if pooling.answers is None:
            backbone.head = NoHead()  # type: ignore[assignment]
        size, labels = self.spec.hidden_size, len(pooling.labels)
        sizes = [size, *(each.out_size for each in pooling.dense)]
        for each, given in zip(pooling.dense, sizes, strict=False):
            if each.in_size != given:
                raise ModelError(f"{each.folder}: in_features is {each.in_size}, but {given} values come in")
        self.dense = [
            Dense("linear", each.in_size, each.out_size, each.bias, each.activation, self.device)
            for each in pooling.dense
        ]
        self.head: Head = []
        if pooling.kind != "embed" and isinstance(backbone, Encoder):
            self.head = backbone.make_classifier(labels)
        elif pooling.kind != "embed":
            self.head = [Dense("score", size, labels, False, "none", self.device)]
        self.prefix = backbone.paths["embed"].split(".")[0] + "."

    @property
    def names(self) -> dict[str, Tensor]:
        found = self.backbone.names
        for part in self.head if self.pooling.answers is None else ():
            found |= part.names()
        return found

    @property
    def parts(self) -> list[Part]:
        """What is in folders of its own, in the order of `pooling.dense`."""
        return [Part(self.spec, self.device, dense.names()) for dense in self.dense]

    def rename(self, name: str) -> str | None:
        """A model saved without its head has names without what they begin with in one saved with it."""
        if name.startswith(UNUSED) and self.pooling.answers is None:
            return None
        if not name.startswith((self.prefix, *HEADS, *UNUSED)):
            name = self.prefix + name
        if isinstance(self.backbone, Encoder) and not self.head and name.startswith(self.backbone.unused):
            return None
        return self.backbone.rename(name)

    def linears(self) -> list[Linear]:
        """Whose weights may be quantised: not those of the head."""
        return self.backbone.linears()

    def expert_layers(self) -> list[Experts]:
        return self.backbone.expert_layers()

    def finish(self) -> None:
        """Once, when all weights are in place."""
        if self.pooling.answers is not None:
            self._compare(*self.pooling.answers)
        self.backbone.finish()
        extra = [*self.head, *self.dense]
        self.num_bytes = self.backbone.num_bytes + sum(t.nbytes for part in extra for t in part.names().values())
        for part in extra:
            part.finish()

    def _compare(self, no: int, yes: int) -> None:
        """All that is needed of the backbone's head: by how much one token is likelier than the other."""
        weight_VE = self.backbone.head.weight
        (score,) = self.head
        assert isinstance(score, Dense)
        score.linear.weight.copy_(weight_VE[yes].float() - weight_VE[no].float())
        self.backbone.head = NoHead()  # type: ignore[assignment]

    def forward(self, batch: ForwardBatch) -> Tensor:
        """The last hidden state of every token, [T, E]."""
        return self.backbone.forward(batch)

    def give(self, hidden_TE: Tensor, start_N1: Tensor, params: PoolingParams) -> Tensor:
        """What all sequences of the step would be given for `params`, [N, F]; for `token_embed` it is [T, F]."""
        spec, task = self.pooling, params.task
        rows = hidden_TE.float() if task == "token_embed" else pool(hidden_TE, start_N1, spec.method)
        for part in (*self.head, *self.dense):
            rows = part(rows)
        wanted = params.use_activation
        if spec.kind == "embed":
            rows = rows[:, : params.dimensions]
            return F.normalize(rows, dim=-1) if (spec.normalize if wanted is None else wanted) else rows
        default = {"classify": spec.activation, "score": spec.score_activation, "reward": "none"}[task]
        if wanted and default == "none":
            default = spec.activation
        return rows if wanted is False else ACTIVATIONS[default](rows)
