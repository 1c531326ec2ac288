"""GGUF files, version 2 and 3: what they say and where each tensor lies. Nothing in a file is trusted.

Every length is compared with what is left of the file before it is used. Types of tensors are those of `TYPES`; what
their bytes stand for is known to `octavo.quant.gguf`.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.core.errors import ModelError

MAGIC = b"GGUF"
MOST = 1 << 20  # tensors, keys, and bytes of a name
ALIGNMENT = 32
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9


@dataclass(frozen=True, slots=True)
class Type:
    name: str
    values: int  # of a block
    bytes: int


TYPES = {
    0: Type("F32", 1, 4),
    1: Type("F16", 1, 2),
    2: Type("Q4_0", 32, 18),
    8: Type("Q8_0", 32, 34),
    12: Type("Q4_K", 256, 144),
    13: Type("Q5_K", 256, 176),
    14: Type("Q6_K", 256, 210),
    30: Type("BF16", 1, 2),
}


@dataclass(frozen=True, slots=True)
class Stored:
    type: Type
    shape: tuple[int, ...]  # as torch has it
    start: int
    size: int


class GgufFile:
    """`metadata` by key; lists, which hold vocabularies, are empty unless they are asked for. `tensors` by name."""

    def __init__(self, path: Path, lists: bool = False) -> None:
        self.path = path
        self.lists = lists
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
        return struct.unpack("<" + layout, self._take(struct.calcsize("<" + layout)))[0]

    def _text(self) -> str:
        size = self._number("Q")
        return self._take(size).decode("utf-8", "replace")

    def _count(self, what: str) -> int:
        count = self._number("Q")
        if count > MOST:
            raise self.error(f"{count} {what} are more than {MOST}")
        return int(count)

    def _value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _TEXT:
            return self._text()
        raise self.error(f"metadata of the type {kind} is not known")

    def _list(self) -> list[Any]:
        """Empty if lists are not asked for."""
        kind, count = self._number("I"), self._number("Q")
        if kind in _NUMBERS:
            content = self._take(count * struct.calcsize("<" + _NUMBERS[kind]))
            return list(struct.unpack(f"<{count}{_NUMBERS[kind]}", content)) if self.lists else []
        if kind != _TEXT:
            raise self.error(f"a list of the type {kind} is not known")
        found = []
        for _ in range(count):  # ends at the end of the file: each takes at least its length
            text = self._take(self._number("Q"))
            if self.lists:
                found.append(text.decode("utf-8", "replace"))
        return found

    def _header(self) -> None:
        if self._take(4) != MAGIC:
            raise self.error("it does not begin with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise self.error(f"version {version} is not 2 or 3")
        tensors, keys = self._count("tensors"), self._count("keys")
        for _ in range(keys):
            key, kind = self._text(), self._number("I")
            self.metadata[key] = self._list() if kind == _LIST else self._value(kind)
        found_tensors = [self._tensor() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= MOST:
            raise self.error(f"general.alignment is {alignment!r:.40}")
        base = -(-self.at // alignment) * alignment
        for name, kind, shape, offset in found_tensors:
            size = math.prod(shape) // kind.values * kind.bytes
            if offset % alignment or base + offset + size > len(self.bytes):
                raise self.error(f"tensor {name} does not lie within the file")
            if name in self.tensors:
                raise self.error(f"tensor {name} is there twice")
            self.tensors[name] = Stored(kind, shape, base + offset, size)

    def _tensor(self) -> tuple[str, Type, tuple[int, ...], int]:
        name, dims = self._text(), self._number("I")
        if not 1 <= dims <= 4:
            raise self.error(f"tensor {name!r:.80} has {dims} dimensions")
        shape = tuple(reversed([self._number("Q") for _ in range(dims)]))
        number, offset = self._number("I"), self._number("Q")
        if number not in TYPES:
            known = ", ".join(kind.name for kind in TYPES.values())
            raise ModelError(f"{self.path}: tensor {name!r:.80} has the type {number}; known: {known}")
        kind = TYPES[number]
        if not all(0 < size < 1 << 32 for size in shape) or shape[-1] % kind.values:
            raise self.error(f"tensor {name!r:.80} has the shape {list(shape)} in blocks of {kind.values}")
        return name, kind, shape, offset
