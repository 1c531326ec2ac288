"""BERT: layer norms after each sum, biases, learned positions and types, gelu. RoBERTa counts positions from its
padding id on, and classifies by a layer of its own; XLM-RoBERTa is RoBERTa with another vocabulary. DistilBERT is BERT
without types, by other names."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from octavo.layers.norm import NoNorm
from octavo.models.blocks import NormedSum
from octavo.models.config import ConfigReader
from octavo.models.encoder import Encoder
from octavo.models.pooling.heads import Dense, Head
from octavo.models.spec import ModelSpec

PATHS = {
    "embed": "bert.embeddings.word_embeddings",
    "positions": "bert.embeddings.position_embeddings",
    "types": "bert.embeddings.token_type_embeddings",
    "embed_norm": "bert.embeddings.LayerNorm",
    "norm": "",
    "head": "",
    "layer": "bert.encoder.layer.{}.",
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "attention_out": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_out": "output.LayerNorm",
}


class Bert(Encoder):
    paths = PATHS
    layer_class = NormedSum
    ignored_suffixes = ("embeddings.position_ids", "embeddings.token_type_ids")
    unused: ClassVar[tuple[str, ...]] = ("bert.pooler.",)

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, device: torch.device, max_len: int) -> None:
        super().__init__(spec, dtype, device, max_len)
        self.norm = NoNorm()

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family({"rms_norm_eps": "layer_norm_eps"}, layer_norm_eps=1e-12, hidden_act="gelu")
        for key in ("is_decoder", "add_cross_attention"):
            if config.flag(key, False):
                raise config.error(key, "is not supported: it is an encoder")
        if (kind := config.text("position_embedding_type", "absolute")) != "absolute":
            raise config.error("position_embedding_type", f"must be absolute, got {kind!r:.80}")
        spec = ModelSpec.from_config(config, lambda *_: None)
        return replace(
            spec,
            max_position=spec.max_position - cls.first_position,
            norm="layer",
            gated=False,
            qkv_bias=True,
            o_bias=True,
            mlp_bias=True,
            causal=False,
            tie_embeddings=False,
            type_vocab_size=config.integer("type_vocab_size", 2),
        )

    def rename(self, name: str) -> str | None:
        """The oldest checkpoints have TensorFlow's names of norms."""
        return super().rename(
            name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        )

    def make_classifier(self, labels: int) -> Head:
        size = self.spec.hidden_size
        return [
            Dense("bert.pooler.dense", size, size, True, "tanh", self.device),
            Dense("classifier", size, labels, True, "none", self.device),
        ]


class Roberta(Bert):
    paths = {part: path.replace("bert.", "roberta.", 1) for part, path in PATHS.items()}
    unused = ("roberta.pooler.", "classifier.")
    first_position = 2  # after the row of the padding id, which is 1 in all of them

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        if (padding := config.integer("pad_token_id", 1, low=0)) != 1:
            raise config.error("pad_token_id", f"must be 1, got {padding}: positions are counted from it")
        return super().configure(config)

    def make_classifier(self, labels: int) -> Head:
        size = self.spec.hidden_size
        return [
            Dense("classifier.dense", size, size, True, "tanh", self.device),
            Dense("classifier.out_proj", size, labels, True, "none", self.device),
        ]


class DistilBert(Bert):
    paths = {
        **PATHS,
        "embed": "distilbert.embeddings.word_embeddings",
        "positions": "distilbert.embeddings.position_embeddings",
        "embed_norm": "distilbert.embeddings.LayerNorm",
        "layer": "distilbert.transformer.layer.{}.",
        "q": "attention.q_lin",
        "k": "attention.k_lin",
        "v": "attention.v_lin",
        "o": "attention.out_lin",
        "attention_out": "sa_layer_norm",
        "up": "ffn.lin1",
        "down": "ffn.lin2",
        "mlp_out": "output_layer_norm",
    }
    unused = ("pre_classifier.", "classifier.")

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        names = {
            "hidden_size": "dim",
            "num_attention_heads": "n_heads",
            "num_hidden_layers": "n_layers",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        }
        return replace(super().configure(config.family(names, activation="gelu")), type_vocab_size=0)

    def make_classifier(self, labels: int) -> Head:
        size = self.spec.hidden_size
        return [
            Dense("pre_classifier", size, size, True, "relu", self.device),
            Dense("classifier", size, labels, True, "none", self.device),
        ]
