"""Granite 3 (dense): Llama with four multipliers. HyperCLOVA X has them too, and a norm after each part.
Granite with windows has attention sinks too, and may rotate by another base in each layer."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS
from octavo.models.llama import Llama
from octavo.models.spec import ModelSpec, layer_windows


class Granite(Llama):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        return replace(
            super().configure(config),
            embedding_scale=config.number("embedding_multiplier", 1.0),
            residual_scale=config.number("residual_multiplier", 1.0),
            attention_scale=config.number("attention_multiplier", 1.0),
            logit_scale=1.0 / config.number("logits_scaling", 1.0),
        )


class HyperCLOVAX(Granite):
    """What divides Granite's logits multiplies here."""

    paths = {**PATHS, "attention_out": "post_norm1", "mlp_out": "post_norm2"}

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        spec = super().configure(config)
        return replace(
            spec,
            order="sandwich" if config.flag("use_post_norm", True) else "pre",
            attention_scale=config.number("attention_multiplier", spec.head_dim**-0.5),
            logit_scale=config.number("logits_scaling", 1.0),
        )


def with_windows(config: ConfigReader, spec: ModelSpec) -> ModelSpec:
    """Sinks, windows but in every fourth layer, from the first on; a theta for each layer, of which 0 is none."""
    windows = layer_windows(config.family(sliding_window=128), spec.num_layers, lambda layer: layer % 4 != 0)
    spec = replace(spec, windows=windows, sinks=True)
    if not config.has("layer_rope_theta"):
        return spec
    thetas = config.raw("layer_rope_theta")
    if type(thetas) is not list or len(thetas) != spec.num_layers:
        raise config.error("layer_rope_theta", f"must be a list of {spec.num_layers} numbers")
    each = ConfigReader({f"layer_rope_theta[{i}]": theta for i, theta in enumerate(thetas)}, config.where)
    numbers = [each.number(name, low=-1.0) for name in each.values]
    ropes = zip(spec.ropes, numbers, strict=True)
    return replace(spec, ropes=tuple(rope and replace(rope, theta=theta) if theta else None for rope, theta in ropes))


class GraniteSWA(Granite):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(rms_norm_eps=1e-5, tie_word_embeddings=True)
        return with_windows(config, super().configure(config))
