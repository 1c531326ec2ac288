"""Phi-3, Phi-3.5 and Phi-4: Llama whose checkpoint holds q, k, v as one tensor and gate, up as another."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.spec import ModelSpec, sliding_window


class Phi3(Decoder):
    paths = {**PATHS, "qkv": "self_attn.qkv_proj", "gate_up": "mlp.gate_up_proj"}

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(original_max_position_embeddings=4096)
        spec = ModelSpec.from_config(config)
        rope = spec.ropes[0]
        assert rope is not None
        if rope.kind not in ("default", "longrope"):
            raise config.error("rope_scaling", f"must be longrope for this architecture, got {rope.kind}")
        return replace(spec, windows=(sliding_window(config, None),) * spec.num_layers)
