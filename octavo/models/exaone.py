"""EXAONE 4: norms after each part and of heads; with windows, the layers without one see no positions.
K-EXAONE has norms before each part, and DeepSeek V3's experts."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from octavo.models.blocks import Block, PostNorm, PreNorm
from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.experts import read_sigmoid, sparse_layers
from octavo.models.olmo import Olmo2
from octavo.models.spec import ModelSpec, layer_windows, sliding_pattern, sliding_window


class Exaone4(Decoder):
    layer_class: ClassVar[type[Block]] = PostNorm
    paths = Olmo2.paths

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        spec = replace(ModelSpec.from_config(config), qk_norm="head")
        if sliding_window(config) is None:
            return spec
        slides = sliding_pattern(config, 4)
        windows = layer_windows(config, spec.num_layers, slides)
        ropes = tuple(rope if window else None for rope, window in zip(spec.ropes, windows, strict=True))
        return replace(spec, windows=windows, ropes=ropes)


class ExaoneMoe(Exaone4):
    layer_class = PreNorm
    paths = {**PATHS, "correction": "mlp.e_score_correction_bias"}

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        names = {"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"}
        spec = super().configure(config.family(names, rms_norm_eps=1e-5))
        defaults = {"num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 1024}
        experts = read_sigmoid(config.family(names, **defaults), spec, 1, True, 2.5)
        layers = sparse_layers(config, spec.num_layers, experts.layers)
        return replace(spec, experts=replace(experts, layers=layers))

    def rename(self, name: str) -> str | None:
        return None if name.startswith("mtp.") else super().rename(name)  # it drafts further tokens
