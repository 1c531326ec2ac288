"""Quantising weights, and the bit packings that formats share. Rounding is to nearest; nothing is calibrated.

Legend: N rows (out), K columns (in), G groups of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.quant.schemes import E4M3, Float8, Integers, Plain, Scheme, pack_halves, unpack_halves

E4M3_MAX = 448.0
GROUPS = (128, 64, 32)  # of int4: the first that divides the row


def quantize(weight_NK: Tensor, method: str) -> Scheme:
    """One of `ONLINE`. What cannot be rounded this way is left as it is."""
    if method == "fp8":
        return to_fp8(weight_NK)
    if method == "int8":
        return to_int8(weight_NK)
    group = next((group for group in GROUPS if weight_NK.shape[1] % group == 0), None)
    return Plain(weight_NK) if group is None else to_int4(weight_NK, group)


def to_fp8(weight_NK: Tensor) -> Float8:
    """A scale for each row."""
    wide = weight_NK.float()
    scale_NG = (wide.abs().amax(1, keepdim=True) / E4M3_MAX).clamp_(min=1e-12)
    return Float8((wide / scale_NG).clamp_(-E4M3_MAX, E4M3_MAX).to(E4M3), scale_NG, dynamic=True)


def to_int8(weight_NK: Tensor) -> Integers:
    """A scale for each row; -128 is not used."""
    wide = weight_NK.float()
    scale_NG = (wide.abs().amax(1, keepdim=True) / 127).clamp_(min=1e-12)
    return Integers((wide / scale_NG).round_().clamp_(-127, 127).to(torch.int8), scale_NG, dynamic=True)


def to_int4(weight_NK: Tensor, group: int) -> Integers:
    """A scale for each group, whose value furthest from zero becomes -8: kernels have no offsets to add."""
    rows, columns = weight_NK.shape
    wide = weight_NK.float().view(rows, -1, group)
    low, high = wide.amin(-1), wide.amax(-1)
    scale_NG = torch.where(high > -low, high, low) / -8
    scale_NG = torch.where(scale_NG.abs() < 1e-12, 1e-12, scale_NG)
    code = (wide / scale_NG[..., None]).round_().add_(8).clamp_(0, 15)
    return Integers(pack_halves(code.view(rows, columns)), scale_NG, -8 * scale_NG)


def unpack_bits(words: Tensor, bits: int) -> Tensor:
    """Numbers of so many bits along the last dimension of int32 words, which are one stream, least bits first."""
    as_bytes = words.contiguous().view(torch.uint8)
    if bits in (4, 8):
        return (unpack_halves(as_bytes) if bits == 4 else as_bytes).int()
    stream = as_bytes.long()
    count = stream.shape[-1] * 8 // bits
    at = torch.arange(count) * bits
    first = at // 8
    second = (first + 1).clamp_(max=stream.shape[-1] - 1)  # a number may lie in two bytes
    pair = stream[..., first] | stream[..., second] << 8
    return (pair >> at % 8) & (1 << bits) - 1


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """The reverse of `unpack_bits`; what is left of the last word is zero."""
    *rows, count = codes.shape
    if bits in (4, 8):
        whole = torch.nn.functional.pad(codes.to(torch.uint8), (0, -count % (32 // bits)))
        return (pack_halves(whole) if bits == 4 else whole).reshape(-1).view(torch.int32).view(*rows, -1)
    bit = (codes.long()[..., None] >> torch.arange(bits)) & 1
    stream = torch.zeros(*rows, -(-count * bits // 32) * 32, dtype=torch.long)
    stream[..., : count * bits] = bit.flatten(-2)
    as_bytes = (stream.view(*rows, -1, 8) << torch.arange(8)).sum(-1).to(torch.uint8)
    return as_bytes.contiguous().view(torch.int32)
