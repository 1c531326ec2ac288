"""BLOOM and MPT: no positions but what each head's scores lose for each token between key and query (ALiBi); a plain
MLP with gelu. BLOOM norms its embeddings too."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from octavo.attention.base import ForwardBatch
from octavo.layers.attention import by_head
from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.spec import ModelSpec


def alibi(num_heads: int) -> tuple[float, ...]:
    """A geometric series down to 1 / 256; where heads are no power of two, of twice as many as the power below."""
    power = 1 << int(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2 ** (-8 * (2 * i + 1) / (2 * power)) for i in range(num_heads - power)]
    return (*slopes, *between)


class Bloom(Decoder):
    paths = {
        **PATHS,
        "embed": "transformer.word_embeddings",
        "embed_norm": "transformer.word_embeddings_layernorm",
        "norm": "transformer.ln_f",
        "layer": "transformer.h.{}.",
        "qkv": "self_attention.query_key_value",
        "o": "self_attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    }

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, device: torch.device, max_len: int) -> None:
        super().__init__(spec, dtype, device, max_len)
        self.embed_norm = self.make_norm()

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        names = {
            "hidden_size": "n_embed" if config.has("n_embed") else "hidden_size",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head" if config.has("n_head") else "num_attention_heads",
            "max_position_embeddings": "seq_length",
            "rms_norm_eps": "layer_norm_epsilon",
        }
        if config.flag("apply_residual_connection_post_layernorm", False):
            raise config.error("apply_residual_connection_post_layernorm", "is not supported")
        config = config.family(names, seq_length=2048, layer_norm_epsilon=1e-5, tie_word_embeddings=True)
        config = config.family(hidden_act="gelu_new", intermediate_size=4 * config.integer("hidden_size"))
        spec = ModelSpec.from_config(config, lambda *_: None)
        spec = replace(spec, norm="layer", gated=False, slopes=alibi(spec.num_heads))
        return replace(spec, qkv_bias=True, o_bias=True, mlp_bias=True)

    def qkv_order(self) -> Callable[[Tensor], Tensor]:
        return by_head(self.spec.num_kv_heads, self.spec.head_dim)

    def rename(self, name: str) -> str | None:
        """The oldest checkpoints leave out what all names begin with."""
        known = name.startswith(("transformer.", "lm_head."))
        return super().rename(name if known else f"transformer.{name}")

    @property
    def names(self) -> dict[str, Tensor]:
        return super().names | self.embed_norm.names(self.paths["embed_norm"])

    def embed_tokens(self, batch: ForwardBatch) -> Tensor:
        return self.embed_norm(super().embed_tokens(batch))[0]


class Mpt(Decoder):
    paths = {
        **PATHS,
        "embed": "transformer.wte",
        "norm": "transformer.norm_f",
        "layer": "transformer.blocks.{}.",
        "attention_in": "norm_1",
        "mlp_in": "norm_2",
        "qkv": "attn.Wqkv",
        "o": "attn.out_proj",
        "up": "ffn.up_proj",
        "down": "ffn.down_proj",
    }

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        names = {
            "hidden_size": "d_model",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "max_position_embeddings": "max_seq_len",
            "rms_norm_eps": "layer_norm_epsilon",
        }
        attention = config.section("attn_config")
        for key, known in (("alibi", True), ("prefix_lm", False), ("qk_ln", False)):
            if attention.flag(key, known) is not known:
                raise attention.error(key, f"must be {str(known).lower()}")
        if (kind := attention.text("attn_type", "multihead_attention")) != "multihead_attention":
            raise attention.error("attn_type", f"must be multihead_attention, got {kind!r:.80}")
        if attention.number("alibi_bias_max", 8.0) != 8.0:  # transformers does not heed it
            raise attention.error("alibi_bias_max", "must be 8")
        if not config.flag("no_bias", True) or config.has("logit_scale"):
            raise config.error("no_bias", "must be true, and logit_scale null")
        config = config.family(names, layer_norm_epsilon=1e-5, tie_word_embeddings=True, hidden_act="gelu")
        size = config.integer("expansion_ratio", 4) * config.integer("hidden_size")
        spec = ModelSpec.from_config(config.family(intermediate_size=size), lambda *_: None)
        return replace(
            spec,
            norm="layer_unbiased",
            gated=False,
            attention_scale=attention.number("softmax_scale", spec.attention_scale),
            qkv_clip=attention.number("clip_qkv") if attention.raw("clip_qkv", 0) else None,
            slopes=alibi(spec.num_heads),
        )
