"""EXAONE 4: norms after each part and of heads; with windows, the layers without one see no positions."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.blocks import PostNorm
from octavo.models.config import ConfigReader
from octavo.models.decoder import Decoder
from octavo.models.olmo import Olmo2
from octavo.models.spec import ModelSpec, layer_windows, sliding_pattern, sliding_window


class Exaone4(Decoder):
    layer_class = PostNorm
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
