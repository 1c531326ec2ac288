"""Quantised weights on their way from a checkpoint into a model, a matrix at a time.

A linear layer that may be quantised owns a shape without memory while it loads (`Linear.defer`). The tensors of a
module that its format has quantised are collected until all of them are there, read into a scheme, and handed to the
layer; so are an expert's, which are rows of its layer's stacks. A matrix that is no linear layer of its own (a part of
latent attention, the head) is decoded into its place. With `online`, plain matrices are quantised when they come: no
two copies of a layer ever exist.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from octavo.core.errors import ModelError
from octavo.layers.linear import Linear
from octavo.models.decoder import Decoder
from octavo.models.pooling.model import PoolingModel
from octavo.quant.formats import Format
from octavo.quant.pack import quantize
from octavo.quant.schemes import Plain, Scheme

# Scales of the KV cache and of queries that some tools write: caches here find theirs when they are written.
IGNORED_SUFFIXES = (".k_scale", ".v_scale", ".q_scale", ".kv_scale", ".kv_cache_scaling_factor")
PLAIN = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class QuantizedWeights:
    """`format`: of the checkpoint. `online`: how plain matrices are quantised, one of octavo.quant.ONLINE."""

    def __init__(self, model: Decoder | PoolingModel, format: Format | None, online: str | None) -> None:
        self.format = format
        self.online = online
        self.device = model.device
        self.owners: dict[int, Linear] = {}
        stacks = [stack for experts in model.expert_layers() for stack in experts.stacks()]
        for linear in (*model.linears(), *stacks):
            linear.defer()
            self.owners[_memory(linear.weight)] = linear
        self.names: dict[str, Tensor] = model.names
        self.expected: dict[str, set[str]] = {}
        self.collected: dict[str, dict[str, Tensor]] = {}
        self.rows: dict[int, int] = dict.fromkeys(self.owners, 0)
        self.filled: set[int] = set()  # addresses of memory that decoded matrices were copied into

    def expect(self, names: Iterable[str]) -> None:
        """All names that the checkpoint has: a module is complete when those below its path have come."""
        for name in names:
            path, suffix = self._split(name)
            if path is not None and suffix != "bias":
                self.expected.setdefault(path, set()).add(suffix)

    def take(self, name: str, tensor: Tensor) -> bool:
        """Whether a tensor was one of those that are dealt with here."""
        if name in self.names and self.names[name].dim() == 3 and self.names[name].device.type == "meta":
            self._give_stack(name, tensor)
            return True
        path, suffix = self._split(name)
        if path is None:
            return name.endswith(IGNORED_SUFFIXES) and name not in self.names
        if suffix == "bias":
            return name not in self.names and not bool(tensor.any())  # some tools write zeros where there is no bias
        target = self.names[f"{path}.weight"]
        if self.expected[path] == {"weight"}:
            if target.device.type != "meta":
                return False
            self.give(path, self._plain(path, tensor, target))
            return True
        if self.format is None:
            return False
        own = self.collected.setdefault(path, {})
        own[suffix] = tensor
        if own.keys() == self.expected[path]:
            del self.collected[path]
            if not target.is_contiguous():
                raise ModelError(f"{path}: a transposed matrix is not read from a quantised checkpoint")
            self.give(path, self.format.read(path, own, (target.shape[0], target.shape[1])))
        return True

    def random(self, std: float, generator: torch.Generator) -> None:
        """Weights of a model without a checkpoint."""
        for name, target in self.names.items():
            if target.device.type == "meta":
                drawn = torch.empty(target.shape, dtype=target.dtype, device=self.device)
                drawn.normal_(0.0, std, generator=generator)
                if target.dim() == 3:
                    self._give_stack(name, drawn)
                    continue
                path = name.removesuffix(".weight")
                self.give(path, self._plain(path, drawn, target))

    def missing(self) -> list[str]:
        """Matrices that have not come."""
        short = {memory for memory, linear in self.owners.items() if self.rows[memory] != linear.shape[0]}
        return [name for name, target in self.names.items() if _memory(target) in short]

    def _split(self, name: str) -> tuple[str | None, str]:
        """The path of the matrix that a name belongs to, and what follows it."""
        end = name.rfind(".")
        while end > 0:
            if f"{name[:end]}.weight" in self.names and self.names[f"{name[:end]}.weight"].dim() == 2:
                return name[:end], name[end + 1 :]
            end = name.rfind(".", 0, end)
        return None, ""

    def _plain(self, path: str, tensor: Tensor, target: Tensor) -> Scheme:
        if tensor.shape != target.shape or tensor.dtype not in PLAIN:
            raise ModelError(
                f"{path}: weight is {list(tensor.shape)} in {tensor.dtype}, with no scales; "
                f"the config asks for {list(target.shape)}"
            )
        weight = tensor.to(self.device, target.dtype)
        if not target.is_contiguous():
            weight = weight.t().contiguous()  # the checkpoint's are transposed
        if self.online is None:
            return Plain(weight.clone() if weight.data_ptr() == tensor.data_ptr() else weight)
        return quantize(weight, self.online)

    def _give_stack(self, name: str, tensor: Tensor) -> None:
        """The plain matrices of all experts of a layer have come."""
        targets = self.names[name]
        if tensor.shape != targets.shape:
            raise ModelError(f"{name} is {list(tensor.shape)}; the config asks for {list(targets.shape)}")
        for weight, target in zip(tensor, targets, strict=True):
            self._put(target, self._plain(name, weight, target))

    def same(self, one: str, other: str) -> bool:
        """Whether two names stand for the same memory."""
        a, b = self.names[one], self.names[other]
        return _memory(a) == _memory(b) and a.storage_offset() == b.storage_offset()

    def give(self, path: str, scheme: Scheme) -> None:
        """The matrix at a path has come."""
        self._put(self.names[f"{path}.weight"], scheme)

    def _put(self, target: Tensor, scheme: Scheme) -> None:
        owner: Any = self.owners.get(_memory(target))
        if owner is None:
            target.copy_(scheme.dequantize(target.dtype))
            self.filled.add(target.data_ptr())
            return
        owner.put(target.storage_offset() // owner.shape[1], scheme.to(self.device))
        self.rows[_memory(target)] += scheme.shape[0]


def _memory(tensor: Tensor) -> int:
    """Which memory a tensor is a part of; shapes without memory have one too."""
    return int(tensor.untyped_storage()._cdata)
