"""GLM-4: Llama that rotates neighbours in the first half of each head; the 0414 models norm after each part too."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.blocks import Sandwich
from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.rope import RopeSpec
from octavo.models.spec import ModelSpec


class Glm(Decoder):
    paths = {**PATHS, "gate_up": "mlp.gate_up_proj"}

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(head_dim=128, partial_rotary_factor=0.5)
        spec = ModelSpec.from_config(config, RopeSpec.interleaved_from)
        return replace(spec, qkv_bias=config.flag("attention_bias", True))


class Glm4(Glm):
    layer_class = Sandwich
    paths = {**Glm.paths, "attention_out": "post_self_attn_layernorm", "mlp_out": "post_mlp_layernorm"}
