"""GPT-J: attention and a plain MLP side by side on one layer norm; neighbours rotate, in a part of each head; biases of
the MLP and the head. CodeGen has queries, values and keys in one tensor, in four pieces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from octavo.models.blocks import Parallel
from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.gpt2 import DEFAULTS, NAMES
from octavo.models.rope import RopeSpec
from octavo.models.spec import ModelSpec

PIECES = 4


class GPTJ(Decoder):
    layer_class = Parallel
    paths = {
        **PATHS,
        "embed": "transformer.wte",
        "norm": "transformer.ln_f",
        "layer": "transformer.h.{}.",
        "attention_in": "ln_1",
        "q": "attn.q_proj",
        "k": "attn.k_proj",
        "v": "attn.v_proj",
        "o": "attn.out_proj",
        "up": "mlp.fc_in",
        "down": "mlp.fc_out",
    }
    ignored_suffixes = (".attn.bias", ".attn.masked_bias", ".attn.causal_mask", ".attn.embed_positions")

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(NAMES, **DEFAULTS | {"tie_word_embeddings": False})
        config = config.family(n_inner=4 * config.integer("hidden_size"))

        def read_rope(config: ConfigReader, head_dim: int, max_position: int) -> RopeSpec:
            size = config.integer("rotary_dim", 64, low=4, high=head_dim)
            return RopeSpec("default", 1e4, size, max_position, max_position, interleaved=True)

        spec = ModelSpec.from_config(config, read_rope)
        return replace(spec, norm="layer", gated=False, mlp_bias=True, head_bias=True)


class CodeGen(GPTJ):
    paths = {**GPTJ.paths, "qkv": "attn.qkv_proj"}

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        spec = super().configure(config)
        if spec.num_heads % PIECES:
            raise config.error("n_head", f"must be a multiple of {PIECES}, got {spec.num_heads}")
        return spec

    def qkv_order(self) -> Callable[[Tensor], Tensor]:
        def order(rows: Tensor) -> Tensor:
            queries, values, keys = rows.view(PIECES, 3, -1, *rows.shape[1:]).unbind(1)
            return torch.cat([part.flatten(0, 1) for part in (queries, keys, values)])

        return order
