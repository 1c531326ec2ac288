"""A layer of experts: a router, experts of which each token sees a few, and perhaps an MLP that all tokens see.

Until `finish` the weights lie as a checkpoint has them, all experts of a layer in one tensor, and each tensor of the
checkpoint is a part of it: nothing is collected or copied twice.

Legend: T tokens, X experts, E hidden, I inner size of an expert, G = 2 I.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.layers.linear import Linear
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import Norm
from octavo.moe.base import ExpertWeights, MoeBackend, MoeSpec
from octavo.moe.select import select_experts
from octavo.quant import mxfp4


class Router:
    """Logits of experts. `wide`: the product itself is in float32, else in the model's type.

    `correction` says how many dimensions a checkpoint gives the bias for choosing; 0: there is none.
    """

    __slots__ = ("correction", "correction_X", "linear", "wide", "wide_XE")

    def __init__(self, spec: MoeSpec, wide: bool, bias: bool, correction: int) -> None:
        self.linear = Linear(spec.hidden_size, spec.routing.num_experts, bias, spec.dtype, spec.device)
        self.wide = wide
        self.wide_XE: Tensor | None = None
        self.correction = correction
        self.correction_X: Tensor | None = None
        if correction:  # always float32: small differences of scores decide
            self.correction_X = torch.zeros(spec.routing.num_experts, dtype=torch.float32, device=spec.device)

    def __call__(self, x_TE: Tensor) -> Tensor:
        if self.wide_XE is not None:
            return F.linear(x_TE.float(), self.wide_XE)
        if self.wide and x_TE.dtype != torch.float32:  # products of 16 bits are exact in the sums' float32
            return torch.mm(x_TE, self.linear.weight.t(), out_dtype=torch.float32)
        return self.linear(x_TE)

    def finish(self) -> None:
        if self.wide and self.linear.weight.device.type == "cpu":
            self.wide_XE = self.linear.weight.float()
        elif not self.wide:
            self.linear.finish()

    def names(self, at: Mapping[str, str]) -> dict[str, Tensor]:
        found = self.linear.names(at["router"])
        if self.correction_X is not None:
            found[at["correction"]] = self.correction_X.view(*[1] * (self.correction - 1), -1)
        return found


class Experts:
    """All experts of a layer; `names` as a checkpoint has them: each apart, or in stacks with the first dimension X.

    `transposed`: the stacks are [X, E, G] and [X, I, E].
    """

    __slots__ = ("backend", "spec", "transposed", "weights")

    def __init__(self, spec: MoeSpec, transposed: bool = False) -> None:
        self.spec = spec
        self.transposed = transposed
        experts, hidden, inner = spec.routing.num_experts, spec.hidden_size, spec.inner_size
        self.weights: ExpertWeights | None = ExpertWeights(
            self.make_weight(experts, 2 * inner, hidden),
            self.make_weight(experts, hidden, inner),
            torch.zeros(experts, 2 * inner, dtype=spec.dtype, device=spec.device) if spec.bias else None,
            torch.zeros(experts, hidden, dtype=spec.dtype, device=spec.device) if spec.bias else None,
        )
        self.backend: MoeBackend | None = None

    def make_weight(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=self.spec.dtype, device=self.spec.device)

    def finish(self) -> None:
        assert self.weights is not None
        self.backend = select_experts(self.spec)[0](self.spec, self.weights)
        self.weights = None

    def names(self, at: Mapping[str, str]) -> dict[str, Tensor]:
        """`at` has `expert_gate`, `expert_up` and `expert_down` with a place for the expert's index, or the stacks."""
        assert self.weights is not None
        weights = self.weights
        found = self.stacks(at) if "experts_gate_up" in at else {}
        if not found:
            for expert, (gate_up_GE, down_EI) in enumerate(zip(weights.gate_up_XGE, weights.down_XEI, strict=True)):
                gate_IE, up_IE = gate_up_GE.chunk(2)
                parts = {"expert_gate": gate_IE, "expert_up": up_IE, "expert_down": down_EI}
                found |= {at[part].format(expert) + ".weight": tensor for part, tensor in parts.items()}
        if weights.gate_up_bias_XG is not None and weights.down_bias_XE is not None:
            found |= {
                at["experts_gate_up_bias"]: weights.gate_up_bias_XG,
                at["experts_down_bias"]: weights.down_bias_XE,
            }
        return found

    def stacks(self, at: Mapping[str, str]) -> dict[str, Tensor]:
        assert self.weights is not None
        gate_up, down = self.weights.gate_up_XGE, self.weights.down_XEI
        if self.transposed:
            gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
        return {at["experts_gate_up"]: gate_up, at["experts_down"]: down}


class Mxfp4Experts(Experts):
    """Stacks in MXFP4, which are decoded when all are there: for kernels that multiply the model's own type."""

    __slots__ = ("packed",)

    def __init__(self, spec: MoeSpec) -> None:
        self.packed: list[tuple[Tensor, Tensor]] = []
        super().__init__(spec)

    def make_weight(self, *shape: int) -> Tensor:
        *rows, size = shape
        on = self.spec.device
        blocks = torch.zeros(*rows, size // mxfp4.BLOCK, mxfp4.BLOCK // 2, dtype=torch.uint8, device=on)
        self.packed.append((blocks, torch.zeros(blocks.shape[:-1], dtype=torch.uint8, device=on)))
        return torch.empty(0, dtype=self.spec.dtype, device=on)

    def finish(self) -> None:
        assert self.weights is not None
        gate_up, down = (
            mxfp4.decode(
                blocks, scales, super(Mxfp4Experts, self).make_weight(*blocks.shape[:2], blocks[0, 0].numel() * 2)
            )
            for blocks, scales in self.packed
        )
        self.packed.clear()
        self.weights = replace(self.weights, gate_up_XGE=gate_up, down_XEI=down)
        super().finish()

    def stacks(self, at: Mapping[str, str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for part, (blocks, scales) in zip(("experts_gate_up", "experts_down"), self.packed, strict=True):
            found |= {f"{at[part]}_blocks": blocks, f"{at[part]}_scales": scales}
        return found


class MixtureOfExperts:
    """`shared` is what all tokens see; with `gate`, weighed by the sigmoid of a product of the token's state."""

    __slots__ = ("experts", "gate", "router", "shared")

    def __init__(self, router: Router, experts: Experts, shared: GatedMLP | None, gate: Linear | None = None) -> None:
        self.router = router
        self.experts = experts
        self.shared = shared
        self.gate = gate

    def finish(self) -> None:
        for part in (self.router, self.experts, self.shared, self.gate):
            if part is not None:
                part.finish()

    def __call__(self, x_TE: Tensor) -> Tensor:
        assert self.experts.backend is not None, "finish() comes first"
        shared_TE = None if self.shared is None else self.shared(x_TE)
        if self.gate is not None and shared_TE is not None:
            shared_TE = torch.sigmoid(self.gate(x_TE)) * shared_TE
        return self.experts.backend(x_TE, self.router(x_TE), self.router.correction_X, shared_TE)

    def after(self, norm: Norm, x_TE: Tensor, stream_TE: Tensor | None) -> tuple[Tensor, Tensor]:
        x_TE, stream_TE = norm(x_TE, stream_TE)
        return self(x_TE), stream_TE

    def linears(self) -> tuple[Linear, ...]:
        """Whose weights may be quantised: of what all tokens see. Routers stay as they are."""
        return () if self.shared is None else self.shared.linears()

    def names(self, at: Mapping[str, str]) -> dict[str, Tensor]:
        found = self.router.names(at) | self.experts.names(at)
        if self.shared is not None:
            shared = {path.removeprefix("shared_"): at[path] for path in at if path.startswith("shared_")}
            found |= self.shared.names(shared)
        if self.gate is not None:
            found |= self.gate.names(at["shared_router"])
        return found
