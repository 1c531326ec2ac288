"""GPT-2: learned positions added to the embeddings, layer norms, biases, a plain MLP, matrices stored transposed.
StarCoder (1) is that with one key/value head, and no matrix transposed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from octavo.layers.attention import by_head
from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS
from octavo.models.positions import LearnedPositions
from octavo.models.spec import ModelSpec

NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
    "hidden_act": "activation_function",
    "rms_norm_eps": "layer_norm_epsilon",
}
DEFAULTS = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}


class GPT2(LearnedPositions):
    paths = {
        **PATHS,
        "embed": "transformer.wte",
        "positions": "transformer.wpe",
        "norm": "transformer.ln_f",
        "layer": "transformer.h.{}.",
        "attention_in": "ln_1",
        "mlp_in": "ln_2",
        "qkv": "attn.c_attn",
        "o": "attn.c_proj",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    }
    ignored_suffixes = (".attn.bias", ".attn.masked_bias")  # of the causal mask

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(NAMES, **DEFAULTS)
        config = config.family(n_inner=4 * config.integer("hidden_size"))
        for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
            if config.flag(key, False):
                raise config.error(key, "is not supported")
        spec = ModelSpec.from_config(config, lambda *_: None)
        spec = replace(spec, norm="layer", gated=False, qkv_bias=True, o_bias=True, mlp_bias=True)
        return spec if config.flag("scale_attn_weights", True) else replace(spec, attention_scale=1.0)

    def rename(self, name: str) -> str | None:
        """The oldest checkpoints leave out what all names begin with."""
        known = name.startswith(("transformer.", "lm_head."))
        return super().rename(name if known else f"transformer.{name}")

    @property
    def names(self) -> dict[str, Tensor]:
        layers = self.paths["layer"].split("{")[0]
        found = super().names
        found |= {name: matrix.t() for name, matrix in found.items() if matrix.dim() == 2 and name.startswith(layers)}
        return found


class GPTBigCode(LearnedPositions):
    paths = GPT2.paths
    ignored_suffixes = (".attn.bias",)

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(activation_function="gelu_pytorch_tanh")
        kv_heads = 1 if config.flag("multi_query", True) else config.integer("n_head", high=2**14)
        return GPT2.configure(config.family({"num_key_value_heads": "kv_heads"}, kv_heads=kv_heads))

    def qkv_order(self) -> Callable[[Tensor], Tensor] | None:
        return None if self.spec.num_kv_heads == 1 else by_head(self.spec.num_kv_heads, self.spec.head_dim)
