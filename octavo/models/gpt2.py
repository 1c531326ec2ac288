"""GPT-2: learned positions added to the embeddings, layer norms, biases, a plain MLP, matrices stored transposed."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from octavo.attention.base import ForwardBatch
from octavo.layers.embedding import Embedding
from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
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


class GPT2(Decoder):
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

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, device: torch.device, max_len: int) -> None:
        super().__init__(spec, dtype, device, max_len)
        self.positions = Embedding(spec.max_position, spec.hidden_size, dtype, device)

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
        return found | self.positions.names(self.paths["positions"])

    def embed_tokens(self, batch: ForwardBatch) -> Tensor:
        return super().embed_tokens(batch).add_(self.positions(batch.positions_T))
