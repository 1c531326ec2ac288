"""OLMo 2: norms after attention and MLP only, and over all query and all key heads at once; OLMo 3 adds windows, and
scales the rope of its other layers alone."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.blocks import PostNorm
from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.rope import RopeSpec, config_of_kind
from octavo.models.spec import ModelSpec, all_but_every, layer_windows, sliding_layers


class Olmo2(Decoder):
    layer_class = PostNorm
    paths = {**PATHS, "attention_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        bias = config.flag("attention_bias", False)
        spec = ModelSpec.from_config(config.family(rms_norm_eps=1e-5))
        return replace(spec, norm="rms_wide", qk_norm="full", qkv_bias=bias, o_bias=bias)


class Olmo3(Olmo2):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        theta = config.number("rope_theta", 5e5, low=1.0)
        full, local = (config_of_kind(config, f"{kind}_attention", theta) for kind in ("full", "sliding"))
        spec = super().configure(full)
        sliding = sliding_layers(config, spec.num_layers, all_but_every(4))
        rope = RopeSpec.from_config(local, spec.head_dim, config.integer("max_position_embeddings", high=2**30))
        return replace(
            spec,
            ropes=tuple(rope if slides else other for slides, other in zip(sliding, spec.ropes, strict=True)),
            windows=layer_windows(config, spec.num_layers, all_but_every(4)),
        )
