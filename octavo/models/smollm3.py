"""SmolLM3: Llama with layers that see no positions."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.llama import Llama
from octavo.models.spec import ModelSpec, sliding_layers, sliding_window


class SmolLM3(Llama):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(tie_word_embeddings=True, rope_theta=2e6)
        spec = super().configure(config)
        every = config.integer("no_rope_layer_interval", 4)
        rotated = config.raw("no_rope_layers", [int((layer + 1) % every != 0) for layer in range(spec.num_layers)])
        if type(rotated) is not list or len(rotated) < spec.num_layers or any(flag not in (0, 1) for flag in rotated):
            raise config.error("no_rope_layers", f"must have a 0 or 1 for each of {spec.num_layers} layers")
        window = sliding_window(config, None) if config.flag("use_sliding_window", False) else None
        sliding = sliding_layers(config, spec.num_layers, lambda layer: not rotated[layer])
        return replace(
            spec,
            ropes=tuple(rope if flag else None for flag, rope in zip(rotated, spec.ropes, strict=False)),
            windows=tuple(window if slides else None for slides in sliding),
        )
