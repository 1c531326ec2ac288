"""GGUF files, version 2 and 3: where each tensor lies, and what its blocks stand for. Nothing in a file is trusted.

Every length is compared with what is left of the file before it is used. Metadata beyond numbers and texts (lists,
which hold vocabularies) is passed over. Blocks become schemes of octavo.quant with the same numbers:

    Q8_0           32 values, int8 with a scale
    Q4_0           32 values, 4 bits with a scale, minus 8
    Q4_K, Q5_K     256 values in 8 groups of 32, each with a scale and a least value of 6 bits
    Q6_K           256 values in 16 groups of 16, each with a scale of 8 bits
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.core.errors import ModelError
from octavo.quant.schemes import Integers, Plain, Scheme, pack_halves

MAGIC = b"GGUF"
MOST = 1 << 20  # tensors, keys, and bytes of a name
ALIGNMENT = 32
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _LIST = 8, 9


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    values: int  # of a block
    bytes: int
    read: Callable[[Tensor], Scheme]  # blocks [N, blocks of a row, bytes] of uint8


@dataclass(frozen=True, slots=True)
class Stored:
    kind: Kind
    shape: tuple[int, ...]  # as torch has it
    start: int
    size: int


class GgufFile:
    """`metadata` has numbers and texts; `tensors` where each one lies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from None
        self.at = 0
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, Stored] = {}
        self._header()

    def error(self, problem: str) -> ModelError:
        return ModelError(f"{self.path} is not a sound GGUF file: {problem}")

    def _take(self, count: int) -> bytes:
        if count > len(self.bytes) - self.at:
            raise self.error(f"it ends where {count} bytes are to follow byte {self.at}")
        self.at += count
        return self.bytes[self.at - count : self.at]

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _text(self) -> str:
        size = self._number("<Q")
        return self._take(size).decode("utf-8", "replace")

    def _count(self, what: str) -> int:
        count = self._number("<Q")
        if count > MOST:
            raise self.error(f"{count} {what} are more than {MOST}")
        return int(count)

    def _value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _TEXT:
            return self._text()
        raise self.error(f"metadata of the type {kind} is not known")

    def _pass_list(self) -> None:
        kind, count = self._number("<I"), self._number("<Q")
        if kind in _NUMBERS:
            self._take(count * struct.calcsize(_NUMBERS[kind]))
        elif kind == _TEXT:
            for _ in range(count):  # ends at the end of the file: each takes at least its length
                self._take(self._number("<Q"))
        else:
            raise self.error(f"a list of the type {kind} is not known")

    def _header(self) -> None:
        if self._take(4) != MAGIC:
            raise self.error("it does not begin with GGUF")
        version = self._number("<I")
        if version not in (2, 3):
            raise self.error(f"version {version} is not 2 or 3")
        tensors, keys = self._count("tensors"), self._count("keys")
        for _ in range(keys):
            key, kind = self._text(), self._number("<I")
            if kind == _LIST:
                self._pass_list()
            else:
                self.metadata[key] = self._value(kind)
        found = [self._tensor() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= MOST:
            raise self.error(f"general.alignment is {alignment!r:.40}")
        base = -(-self.at // alignment) * alignment
        for name, kind, shape, offset in found:
            size = math.prod(shape) // kind.values * kind.bytes
            if offset % alignment or base + offset + size > len(self.bytes):
                raise self.error(f"tensor {name} does not lie within the file")
            if name in self.tensors:
                raise self.error(f"tensor {name} is there twice")
            self.tensors[name] = Stored(kind, shape, base + offset, size)

    def _tensor(self) -> tuple[str, Kind, tuple[int, ...], int]:
        name, dims = self._text(), self._number("<I")
        if not 1 <= dims <= 4:
            raise self.error(f"tensor {name!r:.80} has {dims} dimensions")
        shape = tuple(reversed([self._number("<Q") for _ in range(dims)]))
        number, offset = self._number("<I"), self._number("<Q")
        if number not in KINDS:
            known = ", ".join(kind.name for kind in KINDS.values())
            raise ModelError(f"{self.path}: tensor {name!r:.80} has the type {number}; known: {known}")
        kind = KINDS[number]
        if not all(0 < size < 1 << 32 for size in shape) or shape[-1] % kind.values:
            raise self.error(f"tensor {name!r:.80} has the shape {list(shape)} in blocks of {kind.values}")
        return name, kind, shape, offset

    def read(self, name: str) -> Scheme:
        """Of a matrix; a vector is a matrix of one row."""
        stored = self.tensors[name]
        flat = torch.frombuffer(self.bytes, dtype=torch.uint8, count=stored.size, offset=stored.start)
        rows = math.prod(stored.shape[:-1])
        return stored.kind.read(flat.view(rows, stored.shape[-1] // stored.kind.values, stored.kind.bytes))


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


KINDS = {
    0: Kind("F32", 1, 4, _floats(torch.float32)),
    1: Kind("F16", 1, 2, _floats(torch.float16)),
    2: Kind("Q4_0", 32, 18, _q4_0),
    8: Kind("Q8_0", 32, 34, _q8_0),
    12: Kind("Q4_K", 256, 144, _q4_k),
    13: Kind("Q5_K", 256, 176, _q5_k),
    14: Kind("Q6_K", 256, 210, _q6_k),
    30: Kind("BF16", 1, 2, _floats(torch.bfloat16)),
}
