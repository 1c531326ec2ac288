"""GPT-Neo: GPT-2 with scores that are not scaled, windows in every second layer, and no biases of q, k, v."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS
from octavo.models.positions import LearnedPositions
from octavo.models.spec import ModelSpec

NAMES = {
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "hidden_act": "activation_function",
    "rms_norm_eps": "layer_norm_epsilon",
}


class GPTNeo(LearnedPositions):
    paths = {
        **PATHS,
        "embed": "transformer.wte",
        "positions": "transformer.wpe",
        "norm": "transformer.ln_f",
        "layer": "transformer.h.{}.",
        "attention_in": "ln_1",
        "mlp_in": "ln_2",
        "q": "attn.attention.q_proj",
        "k": "attn.attention.k_proj",
        "v": "attn.attention.v_proj",
        "o": "attn.attention.out_proj",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    }
    ignored_suffixes = (".attn.attention.bias", ".attn.attention.masked_bias")  # of the causal mask

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        defaults = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
        config = config.family(NAMES, **defaults)
        config = config.family(intermediate_size=4 * config.integer("hidden_size"))
        spec = ModelSpec.from_config(config, lambda *_: None)
        window = config.integer("window_size", 256, high=2**30)
        return replace(
            spec,
            norm="layer",
            gated=False,
            o_bias=True,
            mlp_bias=True,
            attention_scale=1.0,
            windows=tuple(window if slides else None for slides in _local(config, spec.num_layers)),
        )


def _local(config: ConfigReader, num_layers: int) -> list[bool]:
    """Whether each layer has a window, from `attention_types`: [[kinds, how many times], ...]."""
    found: list[bool] = []
    for part in config.raw("attention_types", [[["global", "local"], num_layers // 2]]):
        kinds, times = part if type(part) is list and len(part) == 2 else (None, 0)
        if type(kinds) is not list or type(times) is not int or not set(kinds) <= {"global", "local"}:
            raise config.error("attention_types", f"must hold [[global or local, ...], number], got {part!r:.80}")
        found += [kind == "local" for kind in kinds] * min(times, num_layers)
    if len(found) != num_layers:
        raise config.error("attention_types", f"must say global or local of {num_layers} layers, got {len(found)}")
    return found
