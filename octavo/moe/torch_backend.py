"""Experts in plain torch, for CPUs: tokens sorted by expert, then two products for each expert that has any.

It is also the reference of the kernels. It waits for the device, so it cannot be captured.
Legend: T tokens, K experts of a token, P = T * K pairs in the order of experts, E hidden, G = 2 I, I inner size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.kernels.cpu_linear import pack_linear
from octavo.moe.base import ExpertWeights, MoeSpec
from octavo.moe.routing import route

Product = Callable[[Tensor], Tensor]


class TorchExperts:
    name = "torch"

    @staticmethod
    def supports(spec: MoeSpec) -> str | None:
        return None if spec.dtype.is_floating_point else f"it cannot compute in {spec.dtype}"

    def __init__(self, spec: MoeSpec, weights: ExpertWeights) -> None:
        self.spec = spec
        self.gate_up = _products(weights.gate_up_XGE, weights.gate_up_bias_XG)
        self.down = _products(weights.down_XEI, weights.down_bias_XE)

    def __call__(self, x_TE: Tensor, logits_TX: Tensor, bias_X: Tensor | None, shared_TE: Tensor | None) -> Tensor:
        routing = self.spec.routing
        weights_TK, experts_TK = route(logits_TX, bias_X, routing)
        experts_P, order_P = experts_TK.flatten().sort(stable=True)
        counts = torch.bincount(experts_P, minlength=routing.num_experts).tolist()
        tokens_P = order_P // routing.top_k
        x_PE = x_TE.index_select(0, tokens_P)
        y_PE = torch.empty_like(x_PE)
        start = 0
        for expert, count in enumerate(counts):
            if count:
                inner = gated(self.gate_up[expert](x_PE[start : start + count]), self.spec)
                y_PE[start : start + count] = self.down[expert](inner)
                start += count
        y_TKE = torch.empty_like(y_PE).index_copy_(0, order_P, y_PE).view(*experts_TK.shape, -1)
        out_TE = (y_TKE * weights_TK[..., None]).sum(1)
        if shared_TE is not None:
            out_TE = out_TE + shared_TE
        return out_TE.to(x_TE.dtype)


def gated(gate_up_PG: Tensor, spec: MoeSpec) -> Tensor:
    """activation(gate) * up as [P, I]."""
    if spec.interleaved:
        gate, up = gate_up_PG[..., ::2], gate_up_PG[..., 1::2]
    else:
        gate, up = gate_up_PG.chunk(2, -1)
    if spec.activation == "clamped":
        alpha, limit = spec.clamp
        gate = gate.clamp(max=limit)
        return gate * torch.sigmoid(alpha * gate) * (up.clamp(-limit, limit) + 1)
    if spec.activation == "silu":
        return F.silu(gate) * up
    return F.gelu(gate, approximate="tanh" if spec.activation == "gelu_tanh" else "none") * up


def _products(weight_XOI: Tensor, bias_XO: Tensor | None) -> list[Product]:
    """One for each expert."""
    biases: list[Tensor | None] = [None] * len(weight_XOI) if bias_XO is None else list(bias_XO)
    found: list[Product] = []
    for weight, bias in zip(weight_XOI, biases, strict=True):
        packed = pack_linear(weight)
        if packed is not None:
            found.append(lambda x, packed=packed, bias=bias: packed(x, bias))  # type: ignore[misc]
        else:
            found.append(lambda x, weight=weight, bias=bias: F.linear(x, weight, bias))  # type: ignore[misc]
    return found
