"""Tensors of a rounded matrix as compressed-tensors stores them; `octavo.quant.compressed` reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.quant.pack import pack_bits
from octavo.quantize.recipe import Scheme
from octavo.quantize.rounding import Rounded


def stored(scheme: Scheme, rounded: Rounded, dtype: torch.dtype, input_scale: Tensor | None) -> dict[str, Tensor]:
    """By what follows the module's path and a dot; `dtype` is that of scales."""
    code_NK, steps = rounded.code_NK.cpu(), rounded.steps
    scale = steps.scale_NG.to(dtype).cpu()
    found = {"weight_scale": (scale[0] if scheme.strategy == "tensor" else scale).contiguous()}
    if input_scale is not None:
        found["input_scale"] = input_scale.to(dtype).reshape(1).cpu()
    if scheme.layout != "pack-quantized":
        return {"weight": code_NK, **found}
    half = 1 << scheme.bits - 1
    found["weight_packed"] = pack_bits(code_NK.int() + half, scheme.bits)
    found["weight_shape"] = torch.tensor(code_NK.shape)
    if steps.zero_NG is not None:
        zero_GN = (steps.zero_NG.t() + half).int().cpu()
        found["weight_zero_point"] = pack_bits(zero_GN, scheme.bits).t().contiguous()
    return found
