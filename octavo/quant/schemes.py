"""What a quantised matrix is in memory. All formats of checkpoints become one of these, so that kernels stay few.

A matrix is W [N, K], out by in. Every tensor of a scheme but tables and orders has N first: rows can be cut, joined
and put in another order without a look at values, which is what fused layers and shards need. `dequantize` is exact:
it is the reference of every kernel.

Legend: N rows (out), K columns (in), G groups of a row (neighbouring columns that share a scale), P bytes of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
SHARED = ("table", "order_K", "input_scale")  # what belongs to no row


@dataclass(frozen=True, slots=True)
class Scheme:
    """`order_K`: the columns as stored; column i of what is stored is column order_K[i] of W."""

    kind: ClassVar[str]

    @property
    def shape(self) -> tuple[int, int]:
        raise NotImplementedError

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """W [N, K], computed in float32 and rounded once."""
        raise NotImplementedError

    @property
    def tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def map_rows(self, change: Callable[[Tensor], Tensor]) -> Scheme:
        """The same with `change` done to all that has rows."""
        return replace(self, **{name: change(t) for name, t in self.tensors.items() if name not in SHARED})

    def to(self, device: torch.device) -> Scheme:
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors.items()})


@dataclass(frozen=True, slots=True)
class Plain(Scheme):
    """Not quantised: a part of a fused layer that its format leaves alone."""

    kind = "plain"
    weight_NK: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight_NK.shape[0], self.weight_NK.shape[1]

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return self.weight_NK.to(dtype)


@dataclass(frozen=True, slots=True)
class Float8(Scheme):
    """W = code * scale. A tensor's or a row's scale is that of one group; blocks of 128 x 128 are groups of 128.

    `input_scale`: of activations, where the format has measured it; `dynamic`: it is found for each row of x.
    With neither, activations are not rounded.
    """

    kind = "fp8"
    code_NK: Tensor  # float8_e4m3fn
    scale_NG: Tensor  # float32
    input_scale: Tensor | None = None
    dynamic: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.code_NK.shape[0], self.code_NK.shape[1]

    @property
    def group(self) -> int:
        return self.shape[1] // self.scale_NG.shape[1]

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return grouped(self.code_NK.float(), self.scale_NG).to(dtype)


@dataclass(frozen=True, slots=True)
class Integers(Scheme):
    """W = code * scale + offset. 8 bits are signed; 4 bits are 0 to 15, two a byte, the even column in the lower half.

    `dynamic`: activations are rounded to 8 bits, a scale for each row of x; `input_scale`: with a measured one.
    """

    kind = "int"
    code_NP: Tensor  # int8 [N, K] or uint8 [N, K / 2]
    scale_NG: Tensor  # float32
    offset_NG: Tensor | None = None
    order_K: Tensor | None = None
    input_scale: Tensor | None = None
    dynamic: bool = False

    @property
    def bits(self) -> int:
        return 8 if self.code_NP.dtype == torch.int8 else 4

    @property
    def shape(self) -> tuple[int, int]:
        return self.code_NP.shape[0], self.code_NP.shape[1] * 8 // self.bits

    @property
    def group(self) -> int:
        return self.shape[1] // self.scale_NG.shape[1]

    def codes(self) -> Tensor:
        """[N, K], one a byte."""
        return self.code_NP if self.bits == 8 else unpack_halves(self.code_NP)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        weight_NK = grouped(self.codes().float(), self.scale_NG, self.offset_NG)
        return restore_order(weight_NK, self.order_K).to(dtype)


@dataclass(frozen=True, slots=True)
class Table(Scheme):
    """W = table[code] * scale, with 16 values in the table: nf4, fp4."""

    kind = "table"
    code_NP: Tensor  # uint8 [N, K / 2], the even column in the lower half
    scale_NG: Tensor  # float32
    table: Tensor  # float32 [16]

    @property
    def shape(self) -> tuple[int, int]:
        return self.code_NP.shape[0], self.code_NP.shape[1] * 2

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return grouped(self.table[unpack_halves(self.code_NP).int()], self.scale_NG).to(dtype)


def grouped(value_NK: Tensor, scale_NG: Tensor, offset_NG: Tensor | None = None) -> Tensor:
    """value * scale + offset, in new memory."""
    rows, columns = value_NK.shape
    value = value_NK.view(rows, scale_NG.shape[1], -1) * scale_NG[..., None]
    if offset_NG is not None:
        value += offset_NG[..., None]
    return value.view(rows, columns)


def restore_order(weight_NK: Tensor, order_K: Tensor | None) -> Tensor:
    if order_K is None:
        return weight_NK
    return torch.empty_like(weight_NK).index_copy_(1, order_K, weight_NK)


def pack_halves(code_NK: Tensor) -> Tensor:
    code_NK = code_NK.to(torch.uint8)
    return code_NK[..., ::2] | code_NK[..., 1::2] << 4


def unpack_halves(code_NP: Tensor) -> Tensor:
    return torch.stack((code_NP & 15, code_NP >> 4), -1).flatten(-2)


def unrounded(scheme: Scheme) -> Scheme:
    """Without a word on how activations are rounded."""
    return replace(scheme, input_scale=None, dynamic=False) if isinstance(scheme, Float8 | Integers) else scheme


def join(parts: Sequence[Scheme]) -> list[Scheme]:
    """One scheme with all rows, where neighbours are alike; else as few as there can be."""
    joined: list[list[Scheme]] = []
    for part in parts:
        if joined and _alike(joined[-1][0], part):
            joined[-1].append(part)
        else:
            joined.append([part])
    return [run[0] if len(run) == 1 else _concatenated(run) for run in joined]


def _concatenated(run: list[Scheme]) -> Scheme:
    names = [name for name in run[0].tensors if name not in SHARED]
    rows: dict[str, Any] = {name: torch.cat([part.tensors[name] for part in run]) for name in names}
    return replace(run[0], **rows)


def _alike(one: Scheme, other: Scheme) -> bool:
    if type(one) is not type(other) or one.tensors.keys() != other.tensors.keys():
        return False
    for name, tensor in one.tensors.items():
        given = other.tensors[name]
        if tensor.dtype != given.dtype or tensor.shape[1:] != given.shape[1:]:
            return False
        if name in SHARED and not torch.equal(tensor, given):
            return False
    flags = [field.name for field in fields(one) if field.name not in one.tensors]
    return all(getattr(one, name) == getattr(other, name) for name in flags)
