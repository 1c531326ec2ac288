"""Command R: attention and MLP side by side on one norm, a layer norm without biases; neighbours rotate; logits are
scaled. Command A and R7B (Cohere2) have windows, and no positions in the layers without."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.blocks import Parallel
from octavo.models.config import ConfigReader
from octavo.models.decoder import Decoder
from octavo.models.rope import RopeSpec
from octavo.models.spec import ModelSpec, layer_windows, sliding_pattern


class Cohere(Decoder):
    layer_class = Parallel

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        defaults = {"layer_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_theta": 5e5}
        config = config.family({"rms_norm_eps": "layer_norm_eps"}, **defaults)
        bias = config.flag("attention_bias", False)
        return replace(
            ModelSpec.from_config(config, RopeSpec.interleaved_from),
            norm="layer_unbiased",
            qk_norm="head_layer" if config.flag("use_qk_norm", False) else None,
            qkv_bias=bias,
            o_bias=bias,
            logit_scale=config.number("logit_scale", 0.0625),
        )


class Cohere2(Cohere):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        spec = super().configure(config.family(rope_theta=1e4, use_qk_norm=False))
        slides = sliding_pattern(config, 4)
        windows = layer_windows(config, spec.num_layers, slides)
        ropes = tuple(rope if window else None for rope, window in zip(spec.ropes, windows, strict=True))
        return replace(spec, windows=windows, ropes=ropes)
