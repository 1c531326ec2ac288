"""GPT-NeoX and Pythia: layer norms with biases, attention and a plain MLP side by side, a norm for each; a quarter of
each head rotates, and the checkpoint has queries, keys and values in one tensor, head by head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from octavo.layers.attention import by_head
from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.spec import ModelSpec


class GPTNeoX(Decoder):
    paths = {
        **PATHS,
        "embed": "gpt_neox.embed_in",
        "norm": "gpt_neox.final_layer_norm",
        "layer": "gpt_neox.layers.{}.",
        "qkv": "attention.query_key_value",
        "o": "attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    }
    ignored_suffixes = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        names = {"rms_norm_eps": "layer_norm_eps"}
        config = config.family(names, layer_norm_eps=1e-5, hidden_act="gelu", max_position_embeddings=2048)
        config = config.family(
            rope_theta=config.number("rotary_emb_base", 1e4), partial_rotary_factor=config.number("rotary_pct", 0.25)
        )
        bias = config.flag("attention_bias", True)
        return replace(
            ModelSpec.from_config(config),
            norm="layer",
            gated=False,
            order="parallel_norms" if config.flag("use_parallel_residual", True) else "pre",
            qkv_bias=bias,
            o_bias=bias,
            mlp_bias=True,
        )

    def rename(self, name: str) -> str | None:
        return super().rename("lm_head.weight" if name == "embed_out.weight" else name)

    def qkv_order(self) -> Callable[[Tensor], Tensor]:
        return by_head(self.spec.num_kv_heads, self.spec.head_dim)
