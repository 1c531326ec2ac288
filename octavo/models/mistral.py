"""Mistral: Llama without biases, with one sliding window for all layers; Ministral chooses it by layer. Ministral 3
scales queries by their position."""

from __future__ import annotations

from dataclasses import replace

import torch

from octavo.layers.attention import Attention
from octavo.models.config import ConfigReader
from octavo.models.decoder import Decoder
from octavo.models.rope import rope_section
from octavo.models.spec import ModelSpec, layer_windows, sliding_window


class Mistral(Decoder):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        spec = super().configure(config)
        return replace(spec, windows=(sliding_window(config),) * spec.num_layers)


class Ministral(Decoder):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        spec = super().configure(config)
        return replace(spec, windows=layer_windows(config, spec.num_layers, lambda layer: True))


class Ministral3(Mistral):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        spec = super().configure(config.family(rms_norm_eps=1e-5, head_dim=128))
        scaling = rope_section(config)
        beta = scaling.number("llama_4_scaling_beta")
        return replace(spec, query_scale=(beta, scaling.integer("original_max_position_embeddings", high=2**30)))

    def make_attention(self, layer: int) -> Attention:
        attention = super().make_attention(layer)
        assert isinstance(attention, Attention)
        if self.spec.query_scale is None:
            return attention
        beta, original = self.spec.query_scale
        positions_P = torch.arange(self.max_len, device=self.device)
        attention.scales_P = (1 + beta * torch.log1p((positions_P // original).float())).to(self.dtype)
        return attention
