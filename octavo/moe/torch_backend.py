"""Experts in plain torch, for CPUs: tokens sorted by expert, then two products for each expert that has any.

It is also the reference of the kernels. It waits for the device, so it cannot be captured.
Legend: T tokens, K experts of a token, P = T * K pairs in the order of experts, E hidden, G = 2 I, I inner size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.kernels.cpu_linear import pack_linear
from octavo.moe.base import ExpertWeights, MoeSpec
from octavo.moe.routing import route
from octavo.quant.methods import select_method
from octavo.quant.schemes import Scheme

Product = Callable[[Tensor], Tensor]


class TorchExperts:
    name = "torch"

    @staticmethod
    def supports(spec: MoeSpec) -> str | None:
        return None if spec.dtype.is_floating_point else f"it cannot compute in {spec.dtype}"

    def __init__(self, spec: MoeSpec, weights: ExpertWeights) -> None:
        self.spec = spec
        self.stored = "plain"
        self.nbytes = 0
        self.gate_up = self._products(weights.gate_up, weights.gate_up_bias_XG)
        self.down = self._products(weights.down, weights.down_bias_XE)

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

    def _products(self, scheme: Scheme, bias_XO: Tensor | None) -> list[Product]:
        """One for each expert, quantised if a method of octavo.quant computes with it here."""
        experts, dtype = self.spec.routing.num_experts, self.spec.dtype
        rows = scheme.shape[0] // experts
        found: list[Product] = []
        for expert in range(experts):
            own = scheme.map_rows(lambda tensor, first=expert * rows: tensor[first : first + rows])  # type: ignore[misc]
            bias = None if bias_XO is None else bias_XO[expert]
            method = select_method(own, dtype, self.spec.device)[0]
            if method is not None:
                computed = method(own, dtype)
                self.nbytes += computed.nbytes
                self.stored = computed.name
                found.append(_biased(computed, bias))
                continue
            weight = own.dequantize(dtype)
            self.nbytes += weight.nbytes
            packed = pack_linear(weight)
            found.append(partial(F.linear, weight=weight, bias=bias) if packed is None else partial(packed, bias=bias))
        return found


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


def _biased(product: Product, bias_O: Tensor | None) -> Product:
    return product if bias_O is None else lambda x: product(x) + bias_O
