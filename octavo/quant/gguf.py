"""What blocks of GGUF files stand for: schemes of octavo.quant with the same numbers.

    Q8_0           32 values, int8 with a scale
    Q4_0           32 values, 4 bits with a scale, minus 8
    Q4_K, Q5_K     256 values in 8 groups of 32, each with a scale and a least value of 6 bits
    Q6_K           256 values in 16 groups of 16, each with a scale of 8 bits

Blocks are [N, blocks of a row, bytes] of uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from octavo.core.gguf.file import GgufFile
from octavo.quant.schemes import Integers, Plain, Scheme, pack_halves


def read_matrix(file: GgufFile, name: str) -> Scheme:
    """A vector is a matrix of one row."""
    stored = file.tensors[name]
    flat = torch.frombuffer(file.bytes, dtype=torch.uint8, count=stored.size, offset=stored.start)
    rows, kind = math.prod(stored.shape[:-1]), stored.type
    return READERS[kind.name](flat.view(rows, stored.shape[-1] // kind.values, kind.bytes))


def _floats(dtype: torch.dtype) -> Callable[[Tensor], Scheme]:
    return lambda blocks: Plain(blocks.flatten(1).view(dtype))


def _half(two_bytes: Tensor) -> Tensor:
    """[..., 1] in float32."""
    return two_bytes.contiguous().view(torch.float16).float()


def _q8_0(blocks: Tensor) -> Scheme:
    return Integers(blocks[..., 2:].contiguous().view(torch.int8).flatten(1), _half(blocks[..., :2]).squeeze(-1))


def _q4_0(blocks: Tensor) -> Scheme:
    halves = blocks[..., 2:]
    codes = torch.cat((halves & 15, halves >> 4), -1).flatten(1)
    scale_NG = _half(blocks[..., :2]).squeeze(-1)
    return Integers(pack_halves(codes), scale_NG, -8 * scale_NG)


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and least values, 8 of each, in 12 bytes: the upper ones keep two bits beside the lower ones' six."""
    low, middle, high = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scale = torch.cat((low & 63, (high & 15) | (low >> 6) << 4), -1)
    least = torch.cat((middle & 63, (high >> 4) | (middle >> 6) << 4), -1)
    return scale.float(), least.float()


def _groups(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and offsets of Q4_K and Q5_K, [N, G]."""
    scale, least = _six_bits(blocks[..., 4:16])
    return (_half(blocks[..., :2]) * scale).flatten(1), (-_half(blocks[..., 2:4]) * least).flatten(1)


def _by_pairs(halves: Tensor) -> Tensor:
    """[N, blocks, 256] of 128 bytes: 32 bytes hold 32 values in their lower halves, and the next 32 in their upper."""
    parts = halves.reshape(*halves.shape[:2], 4, 32)
    return torch.stack((parts & 15, parts >> 4), -2).flatten(-3)


def _q4_k(blocks: Tensor) -> Scheme:
    scale_NG, offset_NG = _groups(blocks)
    return Integers(pack_halves(_by_pairs(blocks[..., 16:]).flatten(1)), scale_NG, offset_NG)


def _q5_k(blocks: Tensor) -> Scheme:
    scale_NG, offset_NG = _groups(blocks)
    fifth = torch.stack([blocks[..., 16:48] >> bit & 1 for bit in range(8)], -2).flatten(-2)
    codes = _by_pairs(blocks[..., 48:]) | fifth << 4
    return Integers(codes.to(torch.int8).flatten(1), scale_NG, offset_NG)


def _q6_k(blocks: Tensor) -> Scheme:
    low = blocks[..., :128].reshape(*blocks.shape[:2], 2, 2, 32)
    high = blocks[..., 128:192].reshape(*blocks.shape[:2], 2, 1, 32)
    lower = torch.stack((low & 15, low >> 4), -3).flatten(-3, -2)  # four runs of 32 in each half
    upper = torch.cat([high >> shift & 3 for shift in (0, 2, 4, 6)], -2)
    codes = (lower | upper << 4).to(torch.int8) - 32
    scale = blocks[..., 192:208].contiguous().view(torch.int8).float() * _half(blocks[..., 208:])
    return Integers(codes.flatten(1), scale.flatten(1))


READERS: dict[str, Callable[[Tensor], Scheme]] = {
    "F32": _floats(torch.float32),
    "F16": _floats(torch.float16),
    "Q4_0": _q4_0,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "BF16": _floats(torch.bfloat16),
}
