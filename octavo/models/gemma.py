"""Gemma: norms whose weights are stored less one, scaled embeddings, gelu. Gemma 2 adds a norm after each part, soft
caps and windows in every second layer, which VaultGemma has without those norms; Gemma 3 has norms of heads instead of
caps, and two ropes."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from octavo.models.blocks import Block, PreNorm, Sandwich
from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.rope import RopeSpec, config_of_kind
from octavo.models.spec import ModelSpec, all_but_every, layer_windows, sliding_layers, sliding_pattern

FULL, SLIDING = "full_attention", "sliding_attention"


def gemma_spec(config: ConfigReader, spec: ModelSpec) -> ModelSpec:
    """What all of them share. The embedding's scale is rounded to the model's dtype, as it was in training."""
    if config.flag("use_bidirectional_attention", False):
        raise config.error("use_bidirectional_attention", "is not supported: this model generates text")
    bias = config.flag("attention_bias", False)
    scale = spec.hidden_size**0.5
    return replace(spec, norm="rms_plus_one", embedding_scale=scale, qkv_bias=bias, o_bias=bias)


class Gemma(Decoder):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(head_dim=256, tie_word_embeddings=True, hidden_act="gelu_pytorch_tanh")
        spec = gemma_spec(config, ModelSpec.from_config(config))
        # The first configs say gelu, and mean its approximation.
        return replace(spec, activation="gelu_tanh") if spec.activation == "gelu" else spec


class Gemma2(Decoder):
    layer_class: ClassVar[type[Block]] = Sandwich
    paths = {
        **PATHS,
        "attention_out": "post_attention_layernorm",
        "mlp_in": "pre_feedforward_layernorm",
        "mlp_out": "post_feedforward_layernorm",
    }

    @classmethod
    def family(cls, config: ConfigReader) -> ConfigReader:
        defaults = {"head_dim": 256, "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh"}
        return config.family({"hidden_act": "hidden_activation"}, **defaults)

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = cls.family(config)
        spec = gemma_spec(config, ModelSpec.from_config(config))
        return replace(
            spec,
            windows=layer_windows(config, spec.num_layers, all_but_every(2)),
            attention_scale=config.number("query_pre_attn_scalar", 256.0) ** -0.5,
            score_softcap=config.optional("attn_logit_softcapping", 50.0),
            logit_softcap=config.optional("final_logit_softcapping", 30.0),
        )


class VaultGemma(Gemma2):
    layer_class = PreNorm


class Gemma3(Gemma2):
    """The text model."""

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = cls.family(config)
        kinds = {
            FULL: config_of_kind(config, FULL, config.number("rope_theta", 1e6, low=1.0)),
            SLIDING: config_of_kind(config, SLIDING, config.number("rope_local_base_freq", 1e4, low=1.0)),
        }
        spec = gemma_spec(config, ModelSpec.from_config(kinds[FULL]))
        slides = sliding_pattern(config, 6)
        local = RopeSpec.from_config(kinds[SLIDING], spec.head_dim, spec.max_position)
        sliding = sliding_layers(config, spec.num_layers, slides)
        return replace(
            spec,
            ropes=tuple(local if slide else rope for slide, rope in zip(sliding, spec.ropes, strict=True)),
            windows=layer_windows(config, spec.num_layers, slides),
            attention_scale=config.number("query_pre_attn_scalar", 256.0) ** -0.5,
            qk_norm="head",
            logit_softcap=config.optional("final_logit_softcapping", None),
        )
