"""A quantised KV cache: values of one byte, and a scale for every token's head, found when it is written.

So nothing is calibrated, a head with large values costs the others nothing, and what is read does not depend on what
else is in a block. An 8-bit integer keeps more of a value than float8_e4m3fn, whose fraction has three bits. The
scales are 16-bit floats: 2 bytes beside the 64 to 256 of a head.

This is the kernels' reference, and the CPU's way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SCALE_DTYPE = torch.float16
LEAST_SCALE = 2.0**-24  # that float16 holds
DTYPES = (torch.float8_e4m3fn, torch.int8)


def largest(dtype: torch.dtype) -> float:
    """Its largest finite value."""
    return float(torch.finfo(dtype).max if dtype.is_floating_point else torch.iinfo(dtype).max)


def constants(dtype: torch.dtype) -> dict[str, Any]:
    """What kernels that write need to know of the type of a cache."""
    return {"QUANTISED": dtype in DTYPES, "LARGEST": largest(dtype), "INTEGER": not dtype.is_floating_point}


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(values [..., D] of the type, scales [...])."""
    wide = x.float()
    scale = (wide.abs().amax(-1) / largest(dtype)).clamp_(min=LEAST_SCALE).to(SCALE_DTYPE)
    quotient = (wide / scale.float().unsqueeze(-1)).clamp_(-largest(dtype), largest(dtype))
    return (quotient if dtype.is_floating_point else quotient.add_(0.5).floor_()).to(dtype), scale


def of_slots(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Of keys and of values, [..., blocks, size, K]: views of a cache's scales [..., blocks, K, size, 2]."""
    k_scale, v_scale = scales.transpose(-3, -2).unbind(-1)
    return k_scale, v_scale


def dequantise(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """What `quantise` was given, about."""
    return values.float().mul_(scale.float().unsqueeze(-1)).to(dtype)
