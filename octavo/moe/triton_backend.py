"""Experts on a GPU: Triton for decode and small steps, torch's grouped product for many tokens.

Which form serves how many tokens is `octavo.moe.forms`' to say; it follows from their number alone, so a step can be
captured. The kernels are in `octavo.kernels.moe_route` and `octavo.kernels.moe_experts`.

Quantised weights stay codes, which kernels make numbers of in registers; for torch's grouped product a layer's are
decoded in each step. What no kernel reads (tables, columns in an order of their own) is decoded once.
Legend: T tokens, X experts, K experts of a token, P = T * K pairs, E hidden, I inner size of an expert, G = 2 I.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.kernels.codes import CodeMatrix
from octavo.moe.base import ExpertWeights, MoeSpec
from octavo.moe.forms import Form, Pairs, Tiles, choose, fit
from octavo.quant.mxfp4 import Mxfp4
from octavo.quant.schemes import Float8, Integers, Scheme

COLUMNS = 1024  # of gather and combine
OF_WEIGHTS = {"fp8": 1, "int8": 1, "int4": 0.5, "mxfp4": 0.5}  # bytes
SCRATCH_BYTES = 4 << 30  # that a matrix of all experts may take while it is decoded


@dataclass(slots=True)
class Matrix:
    """A matrix of all experts as kernels are given it: [rows of all experts, columns], plain or in codes."""

    weight: Tensor
    codes: CodeMatrix | None
    constants: dict[str, Any]

    @classmethod
    def of(cls, scheme: Scheme, spec: MoeSpec) -> Matrix:
        from octavo.kernels import moe_codes

        codes = None if why_not_codes(scheme, spec.device) is not None else make_codes(scheme)
        if codes is None:
            return cls(scheme.dequantize(spec.dtype), None, moe_codes.PLAIN)
        return cls(codes.code_NP, codes, moe_codes.constants(codes))

    @property
    def arguments(self) -> tuple[Tensor | None, ...]:
        return (self.weight, None, None) if self.codes is None else (
            self.weight, self.codes.scale_GN, self.codes.offset_GN
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes if self.codes is None else self.codes.nbytes

    def decoded(self, experts: int, dtype: torch.dtype) -> Tensor:
        """[X, rows, columns]"""
        from octavo.kernels.quant_linear import decode

        weight = self.weight if self.codes is None else decode(self.codes, dtype)
        return weight.view(experts, -1, weight.shape[-1])


class TritonExperts:
    name = "triton"

    @staticmethod
    def supports(spec: MoeSpec) -> str | None:
        if spec.device.type != "cuda":
            return f"it needs a GPU, not {spec.device.type}"
        try:
            from octavo.kernels import moe_route
        except ImportError as error:
            return f"triton is not installed ({error})"
        if spec.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"it cannot compute in {spec.dtype}"
        if spec.routing.num_experts > moe_route.MOST_EXPERTS:
            return f"at most {moe_route.MOST_EXPERTS} experts, not {spec.routing.num_experts}"
        return None

    def __init__(self, spec: MoeSpec, weights: ExpertWeights) -> None:
        self.spec = spec
        self.gate_up, self.down = Matrix.of(weights.gate_up, spec), Matrix.of(weights.down, spec)
        self.gate_up_bias_XG, self.down_bias_XE = weights.gate_up_bias_XG, weights.down_bias_XE
        self.nbytes = self.gate_up.nbytes + self.down.nbytes
        self.stored = self.gate_up.constants["CODE"]
        self.layout = max(matrix.constants["LAYOUT"] for matrix in (self.gate_up, self.down))
        self.room = shared_memory(spec.device)
        large = max(weights.gate_up.shape[0] * spec.hidden_size, weights.down.shape[0] * spec.inner_size)
        large *= spec.dtype.itemsize if self.stored != "plain" else 0
        self.grouped = why_not_grouped(spec) is None and large <= SCRATCH_BYTES
        self.device = torch.cuda.get_device_name(spec.device) if spec.device.type == "cuda" else spec.device.type

    def form(self, tokens: int) -> Form:
        spec = self.spec
        shape = (spec.routing, spec.inner_size, spec.hidden_size)
        form = choose(tokens, *shape, self.device, self.grouped, self.stored)
        itemsize = spec.dtype.itemsize
        return fit(form, itemsize, self.room, OF_WEIGHTS.get(self.stored, itemsize), self.layout or 32)

    def __call__(self, x_TE: Tensor, logits_TX: Tensor, bias_X: Tensor | None, shared_TE: Tensor | None) -> Tensor:
        return self.compute(self.form(len(x_TE)), x_TE, logits_TX, bias_X, shared_TE)

    def compute(
        self, form: Form, x_TE: Tensor, logits_TX: Tensor, bias_X: Tensor | None, shared_TE: Tensor | None
    ) -> Tensor:
        if isinstance(form, Pairs):
            return self._pairs(form, x_TE, logits_TX, bias_X, shared_TE)
        if isinstance(form, Tiles):
            return self._tiles(form, x_TE, logits_TX, bias_X, shared_TE)
        return self._grouped(x_TE, logits_TX, bias_X, shared_TE)

    def _pairs(
        self, form: Pairs, x_TE: Tensor, logits_TX: Tensor, bias_X: Tensor | None, shared_TE: Tensor | None
    ) -> Tensor:
        from octavo.kernels import moe_experts, moe_route
        from octavo.kernels.chain import chain

        spec = self.spec
        routed = moe_route.route(logits_TX, bias_X, spec.routing, aligned=False)
        inner_PI = x_TE.new_empty(routed.experts_TK.numel(), spec.inner_size)
        options: dict[str, Any] = {
            "K": spec.routing.top_k,
            "R": form.rows,
            "BLOCK": max(form.block, self.layout),
            "STAGES": form.stages,
            "BIAS": spec.bias,
            "num_warps": form.warps,
            **chain(x_TE.device),
        }
        moe_experts.gate_up_pairs_kernel[(-(-spec.inner_size // form.rows), len(inner_PI))](
            x_TE,
            *self.gate_up.arguments,
            self.gate_up_bias_XG,
            inner_PI,
            routed.experts_TK,
            *spec.clamp,
            IN=spec.hidden_size,
            OUT=spec.inner_size,
            ACTIVATION=spec.activation,
            INTERLEAVED=spec.interleaved,
            **self.gate_up.constants,
            **options,
        )
        out_TE = torch.empty_like(x_TE)
        moe_experts.down_pairs_kernel[(-(-spec.hidden_size // form.rows), len(x_TE))](
            inner_PI,
            *self.down.arguments,
            self.down_bias_XE,
            shared_TE,
            out_TE,
            routed.experts_TK,
            routed.weights_TK,
            IN=spec.inner_size,
            OUT=spec.hidden_size,
            SHARED=shared_TE is not None,
            **self.down.constants,
            **options,
        )
        return out_TE

    def _tiles(
        self, form: Tiles, x_TE: Tensor, logits_TX: Tensor, bias_X: Tensor | None, shared_TE: Tensor | None
    ) -> Tensor:
        from octavo.kernels import moe_experts, moe_route
        from octavo.kernels.chain import chain

        spec = self.spec
        routed = moe_route.route(logits_TX, bias_X, spec.routing, aligned=True, rows=form.tile)
        pairs = routed.experts_TK.numel()
        inner_PI, y_PE = x_TE.new_empty(pairs, spec.inner_size), x_TE.new_empty(pairs, spec.hidden_size)
        options: dict[str, Any] = {
            "K": spec.routing.top_k,
            "M": form.tile,
            "R": form.rows,
            "BLOCK": max(form.block, self.layout),
            "STAGES": form.stages,
            "ACTIVATION": spec.activation,
            "INTERLEAVED": spec.interleaved,
            "BIAS": spec.bias,
            "num_warps": form.warps,
            **chain(x_TE.device),
        }
        where = (routed.tiles, routed.order_P, *spec.clamp)
        moe_experts.tiles_kernel[(len(routed.tiles), -(-spec.inner_size // form.rows))](
            x_TE,
            *self.gate_up.arguments,
            self.gate_up_bias_XG,
            inner_PI,
            *where,
            IN=spec.hidden_size,
            OUT=spec.inner_size,
            DOWN=False,
            **self.gate_up.constants,
            **options,
        )
        moe_experts.tiles_kernel[(len(routed.tiles), -(-spec.hidden_size // form.rows))](
            inner_PI,
            *self.down.arguments,
            self.down_bias_XE,
            y_PE,
            *where,
            IN=spec.inner_size,
            OUT=spec.hidden_size,
            DOWN=True,
            **self.down.constants,
            **options,
        )
        return self._combine(y_PE, routed, shared_TE, by_expert=False)

    def _grouped(self, x_TE: Tensor, logits_TX: Tensor, bias_X: Tensor | None, shared_TE: Tensor | None) -> Tensor:
        from octavo.kernels import moe_experts, moe_route
        from octavo.kernels.chain import chain

        spec = self.spec
        routed = moe_route.route(logits_TX, bias_X, spec.routing, aligned=True)
        pairs = routed.experts_TK.numel()
        x_PE = x_TE.new_empty(pairs, spec.hidden_size)
        moe_experts.gather_kernel[(pairs, -(-spec.hidden_size // COLUMNS))](
            x_TE,
            x_PE,
            routed.experts_TK,
            routed.ranks_TK,
            routed.starts_X,
            K=spec.routing.top_k,
            SIZE=spec.hidden_size,
            BLOCK=COLUMNS,
            **chain(x_TE.device),
        )
        experts, dtype = spec.routing.num_experts, spec.dtype
        gate_up_PG = grouped_mm(x_PE, self.gate_up.decoded(experts, dtype), routed.ends_X)
        inner_PI = x_TE.new_empty(pairs, spec.inner_size)
        moe_experts.gate_kernel[(pairs, -(-spec.inner_size // COLUMNS))](
            gate_up_PG,
            self.gate_up_bias_XG,
            inner_PI,
            routed.ends_X,
            *spec.clamp,
            X=experts,
            X_P2=_power_of_two(experts),
            OUT=spec.inner_size,
            BLOCK=COLUMNS,
            ACTIVATION=spec.activation,
            INTERLEAVED=spec.interleaved,
            BIAS=spec.bias,
            **chain(x_TE.device),
        )
        y_PE = grouped_mm(inner_PI, self.down.decoded(experts, dtype), routed.ends_X)
        return self._combine(y_PE, routed, shared_TE, by_expert=True)

    def _combine(self, y_PE: Tensor, routed: Any, shared_TE: Tensor | None, by_expert: bool) -> Tensor:
        from octavo.kernels import moe_experts
        from octavo.kernels.chain import chain

        tokens, top_k = routed.experts_TK.shape
        out_TE = y_PE.new_empty(tokens, self.spec.hidden_size)
        moe_experts.combine_kernel[(tokens, -(-self.spec.hidden_size // COLUMNS))](
            y_PE,
            self.down_bias_XE,
            shared_TE,
            out_TE,
            routed.weights_TK,
            routed.experts_TK,
            routed.ranks_TK,
            routed.starts_X,
            K=top_k,
            SIZE=self.spec.hidden_size,
            BLOCK=COLUMNS,
            SORTED=by_expert,
            BIAS=by_expert and self.spec.bias,
            SHARED=shared_TE is not None,
            **chain(out_TE.device),
        )
        return out_TE


def make_codes(scheme: Scheme) -> CodeMatrix:
    if isinstance(scheme, Mxfp4):
        return CodeMatrix.of_mxfp4(scheme.code_NP, scheme.scale_NG)
    if isinstance(scheme, Float8):
        return CodeMatrix.of(scheme.code_NK, scheme.scale_NG, None)
    assert isinstance(scheme, Integers)
    return CodeMatrix.of(scheme.code_NP, scheme.scale_NG, scheme.offset_NG)


def why_not_codes(scheme: Scheme, device: torch.device) -> str | None:
    """The reason why the kernels cannot read a scheme."""
    if isinstance(scheme, Float8):
        if device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 9):
            return "the device does not know float8"
        return None if scheme.group % 16 == 0 else "groups are multiples of 16 columns"
    if isinstance(scheme, Integers):
        least = 32 if scheme.bits == 4 else 16
        if scheme.order_K is not None:
            return "columns have an order of their own"
        return None if scheme.group % least == 0 else f"groups are multiples of {least} columns"
    return None if isinstance(scheme, Mxfp4) else "no kernel reads it"


def grouped_mm(x_PI: Tensor, weight_XOI: Tensor, ends_X: Tensor) -> Tensor:
    """Rows of each expert times its weight's transpose."""
    product = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
    found: Tensor = product(x_PI, weight_XOI.transpose(1, 2), offs=ends_X)
    return found


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()


def shared_memory(device: torch.device) -> int:
    """Bytes that a program may have."""
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return getattr(properties, "shared_memory_per_block_optin", 0) or 64 << 10


def why_not_grouped(spec: MoeSpec) -> str | None:
    """The reason why torch's grouped product cannot serve here."""
    if spec.device.type != "cuda" or torch.version.hip is not None:
        return f"it is made for NVIDIA's GPUs, not {spec.device.type}"
    if torch.cuda.get_device_capability(spec.device) not in ((9, 0), (10, 0)):
        return "elsewhere than on Hopper and Blackwell it waits for the device"
    if not hasattr(torch.nn.functional, "grouped_mm") and not hasattr(torch, "_grouped_mm"):
        return "this torch does not have it"
    if spec.dtype != torch.bfloat16:
        return f"it computes in bfloat16, not {spec.dtype}"
    if spec.hidden_size % 8 or spec.inner_size % 8:
        return "rows must be multiples of 16 bytes"
    return None
