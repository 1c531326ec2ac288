"""Apertus: norms of query and key heads, and a plain MLP whose activation, xIELU, has its own numbers in each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.layers.mlp import MLP
from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS
from octavo.models.llama import Llama
from octavo.models.spec import ModelSpec

SCALED = {
    "rope_type": "llama3",
    "rope_theta": 12e6,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


class XieluMLP(MLP):
    """Above zero a x^2 + c x, below b (exp(x) - 1 - x) + c x; `numbers` gives a, b and c, as a checkpoint has them."""

    __slots__ = ("numbers",)

    def __init__(self, hidden_size: int, inner_size: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(hidden_size, inner_size, "relu", False, dtype, device)
        shapes = {"alpha_p": (1,), "alpha_n": (1,), "beta": (), "eps": ()}
        self.numbers = {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in shapes.items()}
        self.activate = self.xielu

    def finish(self) -> None:
        super().finish()
        numbers = self.numbers
        above, below = F.softplus(numbers["alpha_p"]), numbers["beta"] + F.softplus(numbers["alpha_n"])
        self.numbers |= {"above": above, "below": below}

    def xielu(self, x: Tensor) -> Tensor:
        above, below, beta, eps = (self.numbers[name] for name in ("above", "below", "beta", "eps"))
        small = (torch.expm1(torch.min(x, eps)) - x) * below
        return torch.where(x > 0, above * x * x, small) + beta * x

    def names(self, at: Mapping[str, str]) -> dict[str, Tensor]:
        return super().names(at) | {f"{at['xielu']}.{name}": number for name, number in self.numbers.items()}


class Apertus(Llama):
    paths = {
        **PATHS,
        "attention_in": "attention_layernorm",
        "mlp_in": "feedforward_layernorm",
        "xielu": "mlp.act_fn",
    }

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        if config.text("hidden_act", "xielu") != "xielu":
            raise config.error("hidden_act", "must be xielu")
        config = config.family({"hidden_act": "xielu"}, rms_norm_eps=1e-5)
        if not config.has("rope_parameters") and not config.has("rope_scaling"):
            config = config.family(rope_parameters=SCALED)
        return replace(super().configure(config), qk_norm="head", gated=False)

    def make_mlp(self, layer: int) -> XieluMLP:
        return XieluMLP(self.spec.hidden_size, self.spec.intermediate_size, self.dtype, self.device)
