"""StableLM 2: Llama with layer norms, that rotates a quarter of each head; the 12B model has
attention and MLP side by side, and norms of heads."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from octavo.layers.qk_norm import HeadLayerNorm
from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.spec import ModelSpec


class StableLm(Decoder):
    paths = {**PATHS, "q_norm": "self_attn.q_layernorm", "k_norm": "self_attn.k_layernorm"}

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family({"rms_norm_eps": "layer_norm_eps"}, layer_norm_eps=1e-5, partial_rotary_factor=0.25)
        spec = ModelSpec.from_config(config)
        if config.flag("qk_layernorm", False):
            spec = replace(spec, qk_norm="head_layer")
        order = "parallel" if config.flag("use_parallel_residual", False) else "pre"
        return replace(spec, norm="layer", order=order, qkv_bias=config.flag("use_qkv_bias", False))

    def make_qk_norm(self) -> HeadLayerNorm | None:
        spec = self.spec
        heads = (spec.num_heads, spec.num_kv_heads)
        return EachHeadNorm(heads, spec.head_dim, spec.norm_eps, self.dtype, self.device) if spec.qk_norm else None


class EachHeadNorm(HeadLayerNorm):
    """A checkpoint has the weights of each head in a tensor of their own."""

    __slots__ = ()

    def names(self, q_path: str, k_path: str) -> dict[str, Tensor]:
        parts = ((q_path, self.q_HD), (k_path, self.k_KD))
        return {f"{path}.norms.{i}.weight": row for path, rows in parts for i, row in enumerate(rows)}
