"""Which format a checkpoint is in, from the quantization_config of its config, and what all formats share.

A format reads modules one at a time: `read(path, tensors, shape)` gets all tensors that a checkpoint has below a
linear layer's path and gives the scheme of its matrix. What is stored as a plain `weight` was left alone by the
format's tool and never gets here. Values of a config and tensors are checked: both are a stranger's.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from octavo.core.errors import ModelError
from octavo.quant.schemes import Integers, Scheme, pack_halves

_MODULES = {  # quant_method: module below octavo.quant, and class
    "fp8": "fp8:Fp8",
    "fbgemm_fp8": "fp8:Fp8",
    "compressed-tensors": "compressed:CompressedTensors",
    "gptq": "gptq:Gptq",
    "awq": "gptq:Awq",
    "auto-round": "gptq:AutoRound",
    "bitsandbytes": "bitsandbytes:BitsAndBytes",
}


class Format(Protocol):
    def __init__(self, config: Options) -> None: ...

    def read(self, path: str, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Scheme:
        """`tensors` by what follows the path and a dot. Raises ModelError for what is not this format's."""


class Options:
    """Typed access to a quantization_config."""

    def __init__(self, values: Mapping[str, Any], where: str = "quantization_config") -> None:
        self.values = values
        self.where = where

    def error(self, key: str, problem: str) -> ModelError:
        return ModelError(f"{self.where}: {key} {problem}")

    def integer(self, key: str, allowed: tuple[int, ...] | range, default: int | None = None) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is not int or value not in allowed:
            known = f"in [{allowed[0]}, {allowed[-1]}]" if isinstance(allowed, range) else f"one of {allowed}"
            raise self.error(key, f"must be {known}, got {value!r:.80}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.error(key, f"must be true or false, got {value!r:.80}")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.values.get(key)
        if value is None:
            return default
        if type(value) is not str:
            raise self.error(key, f"must be a string, got {value!r:.80}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key) or []
        if type(value) is not list or any(type(item) is not str for item in value):
            raise self.error(key, f"must be a list of strings, got {value!r:.80}")
        return tuple(value)

    def section(self, key: str) -> Options | None:
        value = self.values.get(key)
        if value is None:
            return None
        if type(value) is not dict:
            raise self.error(key, f"must be an object, got {value!r:.80}")
        return Options(value, f"{self.where}: {key}")


def read_format(config: Mapping[str, Any]) -> Format:
    """The format that a quantization_config speaks of."""
    method = config.get("quant_method")
    if type(method) is not str or method not in _MODULES:
        raise ModelError(f"quantization_config: quant_method {method!r:.80} is not one of {', '.join(_MODULES)}")
    module, name = _MODULES[method].split(":")
    made: Format = getattr(importlib.import_module(f"octavo.quant.{module}"), name)(Options(config))
    return made


class Parts:
    """The tensors of one module: each is taken by name, with its type and shape; what nobody took is an error."""

    def __init__(self, path: str, tensors: Mapping[str, Tensor]) -> None:
        self.path = path
        self.left = dict(tensors)

    def error(self, problem: str) -> ModelError:
        return ModelError(f"{self.path}: {problem}")

    def take(self, name: str, *shape: int | None, dtype: tuple[torch.dtype, ...] = ()) -> Tensor:
        """None in `shape` is any size."""
        if name not in self.left:
            raise self.error(f"{name} is missing; there is {', '.join(sorted(self.left)) or 'nothing'}")
        tensor = self.left.pop(name)
        fits = len(shape) == tensor.dim() and all(
            want in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            wanted = ["any" if size is None else size for size in shape]
            raise self.error(f"{name} has the shape {list(tensor.shape)}; expected {wanted}")
        if dtype and tensor.dtype not in dtype:
            raise self.error(f"{name} has the type {tensor.dtype}; expected {' or '.join(map(str, dtype))}")
        return tensor

    def optional(self, name: str, *shape: int | None, dtype: tuple[torch.dtype, ...] = ()) -> Tensor | None:
        return self.take(name, *shape, dtype=dtype) if name in self.left else None

    def drop(self, *names: str) -> None:
        """What is known and not needed."""
        for name in names:
            self.left.pop(name, None)

    def scalar(self, name: str) -> Tensor | None:
        """A positive float32, or None if there is none."""
        tensor = self.left.pop(name, None)
        if tensor is None:
            return None
        if tensor.numel() != 1 or not tensor.is_floating_point() or not 0 < float(tensor) < float("inf"):
            raise self.error(f"{name} must be one positive number")
        return tensor.float().reshape(())

    def scales(self, name: str, shape: tuple[int, int], block: tuple[int, int] | None = None) -> Tensor:
        """[N, G] in float32: of the matrix, of each row, of groups of a row, or of blocks."""
        if name not in self.left:
            raise self.error(f"{name} is missing; there is {', '.join(sorted(self.left)) or 'nothing'}")
        scale, (rows, columns) = self.left.pop(name).float(), shape
        if not torch.isfinite(scale).all():
            raise self.error(f"{name} holds a number that is not finite")
        if block is not None:
            across = -(-columns // block[1])
            if list(scale.shape) != [-(-rows // block[0]), across]:
                raise self.error(f"{name} has the shape {list(scale.shape)}, not one number a block of {shape}")
            if columns % block[1]:
                raise self.error(f"blocks of {block[1]} do not divide {columns} columns")
            return scale.repeat_interleave(block[0], 0)[:rows].contiguous()
        if scale.numel() == 1:
            return scale.reshape(1, 1).expand(rows, 1).contiguous()
        if scale.dim() == 1:
            scale = scale[:, None]
        if scale.dim() != 2 or len(scale) != rows or not scale.shape[1] or columns % scale.shape[1]:
            raise self.error(f"{name} has the shape {list(scale.shape)}, which does not fit {list(shape)}")
        return scale.contiguous()

    def done(self) -> None:
        if self.left:
            raise self.error(f"tensor {min(self.left)} has no place in this format")


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Names of modules, or of parents or endings of them; `re:` begins a regular expression of the whole start."""
    for pattern in patterns:
        if pattern.startswith("re:"):
            try:
                if re.match(pattern[3:], path):
                    return True
            except re.error as error:
                raise ModelError(f"quantization_config: {pattern!r:.80} is no regular expression: {error}") from None
        elif path == pattern or path.startswith(f"{pattern}.") or path.endswith(f".{pattern}"):
            return True
    return False


def integers(
    codes_NK: Tensor,
    bits: int,
    scale_NG: Tensor,
    zero_NG: Tensor | None,
    order_K: Tensor | None = None,
    input_scale: Tensor | None = None,
    dynamic: bool = False,
) -> Integers:
    """A scheme out of numbers 0 to 2^bits - 1, of which `zero` (None: the middle) stands for 0."""
    middle = 1 << bits - 1
    if bits <= 4 and codes_NK.shape[1] % 2 == 0:
        zero = torch.full_like(scale_NG, middle) if zero_NG is None else zero_NG.float()
        code_NP, offset = pack_halves(codes_NK), -zero * scale_NG
        return Integers(code_NP, scale_NG, offset, order_K, input_scale, dynamic)
    offset_NG = None if zero_NG is None else (middle - zero_NG.float()) * scale_NG
    return Integers((codes_NK - middle).to(torch.int8), scale_NG, offset_NG, order_K, input_scale, dynamic)


def grouping(parts: Parts, groups_K: Tensor | None, count: int, columns: int) -> Tensor | None:
    """The order of columns that makes each of `count` groups neighbours, from the group of each; None: it is so."""
    if groups_K is None:
        return None
    groups = groups_K.long()
    if len(groups) and (int(groups.min()) < 0 or int(groups.max()) >= count):
        raise parts.error(f"g_idx must hold groups in [0, {count})")
    size = columns // count
    if not torch.equal(groups.bincount(minlength=count), torch.full((count,), size)):
        raise parts.error("g_idx has groups of different sizes, which is not supported")
    order_K = groups.argsort(stable=True)
    return None if torch.equal(order_K, torch.arange(columns)) else order_K
