"""nanochat: norms without weights, of the embeddings and of rotated query and key heads too; a plain MLP with relu
squared; pairs turn the other way; soft caps on logits."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from octavo.attention.base import ForwardBatch
from octavo.layers.rope import Rope
from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.rope import RopeSpec
from octavo.models.spec import ModelSpec


class NanoChat(Decoder):
    paths = {**PATHS, "up": "mlp.fc1", "down": "mlp.fc2"}

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        bias = config.flag("attention_bias", False)
        return replace(
            super().configure(config.family(rms_norm_eps=1e-6, hidden_act="relu2")),
            norm="rms_plain",
            gated=False,
            qk_norm="head",
            qk_norm_late=True,
            qkv_bias=bias,
            o_bias=bias,
            logit_softcap=config.optional("final_logit_softcapping", 15.0),
        )

    def make_rope(self, rope: RopeSpec) -> Rope:
        size = self.spec.head_dim
        return Rope(-rope.frequencies(self.max_len), rope.attention_factor, size, self.max_len, self.dtype, self.device)

    def embed_tokens(self, batch: ForwardBatch) -> Tensor:
        return self.norm(super().embed_tokens(batch))[0]
