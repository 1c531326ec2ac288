"""A layer of experts: a router, experts of which each token sees a few, and perhaps an MLP that all tokens see.

Until `finish` plain weights lie as a checkpoint has them, all experts of a layer in one tensor, and each tensor of the
checkpoint is a part of it: nothing is collected or copied twice. Quantised ones come an expert at a time, and a layer's
are put together when all are there.

Legend: T tokens, X experts, E hidden, I inner size of an expert, G = 2 I.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.layers.linear import Linear
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import Norm
from octavo.moe.base import ExpertWeights, MoeBackend, MoeSpec
from octavo.moe.select import select_experts
from octavo.quant.mxfp4 import BLOCK, Mxfp4
from octavo.quant.schemes import Plain, Scheme, join, unrounded


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


class Stack(Linear):
    """A matrix of all experts, one below the other, and Linear's ways to bring it."""

    __slots__ = ()

    def scheme(self) -> Scheme:
        """What has come, once: as few bytes as it came in, if all experts are quantised alike."""
        if self.rows is None:
            return Plain(self.weight)
        schemes = [self.rows[row] for row in sorted(self.rows)]
        self.rows = {}
        joined = join(schemes)
        if len(joined) > 1:  # measured scales of activations differ, and here these are not rounded
            joined = join([unrounded(scheme) for scheme in schemes])
        return joined[0] if len(joined) == 1 else Plain(torch.cat([part.dequantize(self.on[0]) for part in schemes]))


class Experts:
    """All experts of a layer; `names` as a checkpoint has them: each apart, or in stacks with the first dimension X.

    `transposed`: the stacks are [X, E, G] and [X, I, E].
    """

    __slots__ = ("backend", "biases", "down", "gate_up", "spec", "transposed")

    def __init__(self, spec: MoeSpec, transposed: bool = False) -> None:
        self.spec = spec
        self.transposed = transposed
        experts, hidden, inner = spec.routing.num_experts, spec.hidden_size, spec.inner_size
        self.gate_up = Stack(hidden, experts * 2 * inner, False, spec.dtype, spec.device)
        self.down = Stack(inner, experts * hidden, False, spec.dtype, spec.device)
        self.biases: tuple[Tensor, Tensor] | None = None
        if spec.bias:
            sizes = (2 * inner, hidden)
            gate_up, down = (torch.zeros(experts, size, dtype=spec.dtype, device=spec.device) for size in sizes)
            self.biases = gate_up, down
        self.backend: MoeBackend | None = None

    def stacks(self) -> tuple[Stack, ...]:
        """That may be quantised while they are loaded."""
        return self.gate_up, self.down

    @property
    def num_bytes(self) -> int:
        """Without biases: of what waits to be loaded into, and after `finish` of what is kept."""
        if self.backend is not None:
            return self.backend.nbytes
        return sum(stack.weight.nbytes for stack in (self.gate_up, self.down) if stack.rows is None)

    def finish(self) -> None:
        gate_up_bias_XG, down_bias_XE = self.biases or (None, None)
        weights = ExpertWeights(*self.schemes(), gate_up_bias_XG, down_bias_XE)
        self.backend = select_experts(self.spec)[0](self.spec, weights)
        for stack in (self.gate_up, self.down):
            stack.weight = torch.empty(0)

    def schemes(self) -> tuple[Scheme, Scheme]:
        return self.gate_up.scheme(), self.down.scheme()

    def names(self, at: Mapping[str, str]) -> dict[str, Tensor]:
        """`at` has `expert_gate`, `expert_up` and `expert_down` with a place for the expert's index, or the stacks."""
        found = self.stored(at) if "experts_gate_up" in at else {}
        if not found:
            gate_up_XGE, down_XEI = self.by_expert()
            for expert, (gate_up_GE, down_EI) in enumerate(zip(gate_up_XGE, down_XEI, strict=True)):
                gate_IE, up_IE = gate_up_GE.chunk(2)
                parts = {"expert_gate": gate_IE, "expert_up": up_IE, "expert_down": down_EI}
                found |= {at[part].format(expert) + ".weight": tensor for part, tensor in parts.items()}
        if self.biases is not None:
            found |= dict(zip((at["experts_gate_up_bias"], at["experts_down_bias"]), self.biases, strict=True))
        return found

    def by_expert(self) -> tuple[Tensor, Tensor]:
        experts = self.spec.routing.num_experts
        gate_up, down = (stack.weight.view(experts, -1, stack.shape[1]) for stack in (self.gate_up, self.down))
        return gate_up, down

    def stored(self, at: Mapping[str, str]) -> dict[str, Tensor]:
        gate_up, down = self.by_expert()
        if self.transposed:
            gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
        return {at["experts_gate_up"]: gate_up, at["experts_down"]: down}


class Mxfp4Experts(Experts):
    """Stacks in MXFP4, as a checkpoint has them."""

    __slots__ = ("packed",)

    def __init__(self, spec: MoeSpec) -> None:
        super().__init__(spec)
        self.packed: list[tuple[Tensor, Tensor]] = []
        for stack in (self.gate_up, self.down):
            shape = (spec.routing.num_experts, stack.shape[0] // spec.routing.num_experts, stack.shape[1] // BLOCK)
            blocks = torch.zeros(*shape, BLOCK // 2, dtype=torch.uint8, device=spec.device)
            self.packed.append((blocks, torch.zeros(shape, dtype=torch.uint8, device=spec.device)))

    def stacks(self) -> tuple[Stack, ...]:
        return ()

    @property
    def num_bytes(self) -> int:
        return super().num_bytes if self.backend is not None else sum(t.nbytes for pair in self.packed for t in pair)

    def schemes(self) -> tuple[Scheme, Scheme]:
        gate_up, down = (Mxfp4(blocks.flatten(2).flatten(0, 1), scales.flatten(0, 1)) for blocks, scales in self.packed)
        self.packed.clear()
        return gate_up, down

    def stored(self, at: Mapping[str, str]) -> dict[str, Tensor]:
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
