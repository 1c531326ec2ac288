"""compressed-tensors, what llm-compressor writes: groups of modules ("targets") with a scheme each.

Layouts: pack-quantized (integers in int32 words along the input, stored plus half their range), int-quantized,
float-quantized (e4m3) and naive-quantized, which is either of the two.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from octavo.quant.formats import Options, Parts, grouping, integers, matches
from octavo.quant.pack import unpack_bits
from octavo.quant.schemes import E4M3, Float8, Integers, Scheme

LAYOUTS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
STRATEGIES = ("tensor", "channel", "group", "block", "tensor_group")


class _Group:
    """One of config_groups."""

    def __init__(self, config: Options, layout: str) -> None:
        self.targets = config.texts("targets")
        weights, inputs = config.section("weights"), config.section("input_activations")
        if weights is None:
            raise config.error("weights", "is missing")
        self.layout = config.text("format", layout)
        if self.layout not in LAYOUTS:
            raise config.error("format", f"must be one of {', '.join(LAYOUTS)}, got {self.layout!r:.80}")
        self.bits = weights.integer("num_bits", (4, 8))
        self.float = weights.text("type", "int") == "float"
        if self.float and self.bits != 8:
            raise weights.error("num_bits", "must be 8 for floats")
        self.block: tuple[int, int] | None = None
        if weights.text("strategy", "channel") == "block":
            size = weights.values.get("block_structure")
            if not (type(size) is list and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
                raise weights.error("block_structure", f"must be two positive integers, got {size!r:.80}")
            self.block = (size[0], size[1])
        self.dynamic = inputs is not None and inputs.flag("dynamic", False)
        self.static = inputs is not None and not self.dynamic
        if inputs is not None and inputs.integer("num_bits", (8,)) != 8:
            raise inputs.error("num_bits", "must be 8")

    def read(self, parts: Parts, shape: tuple[int, int]) -> Scheme:
        input_scale = parts.scalar("input_scale")
        if self.static and input_scale is None:
            raise parts.error("input_scale is missing, and activations have a static scale")
        given = input_scale if self.static else None
        if self.layout == "pack-quantized":
            return self._packed(parts, shape)
        scale_NG = parts.scales("weight_scale", shape, self.block)
        if self.float:
            parts.drop("weight_zero_point", "input_zero_point")
            return Float8(parts.take("weight", *shape, dtype=(E4M3,)), scale_NG, given, self.dynamic)
        code_NK = parts.take("weight", *shape, dtype=(torch.int8,))
        zero = parts.left.pop("weight_zero_point", None)
        input_zero = parts.left.pop("input_zero_point", None)
        if input_zero is not None and bool(input_zero.any()):
            raise parts.error("asymmetric activations are not supported")
        offset_NG = None
        if zero is not None and bool(zero.any()):
            offset_NG = -zero.float().reshape(len(zero), -1).expand_as(scale_NG) * scale_NG
        return Integers(code_NK, scale_NG, offset_NG, None, given, self.dynamic)

    def _packed(self, parts: Parts, shape: tuple[int, int]) -> Integers:
        rows, columns = shape
        a_word = 32 // self.bits
        words = parts.take("weight_packed", rows, -(-columns // a_word), dtype=(torch.int32,))
        told = parts.optional("weight_shape", 2)
        if told is not None and told.tolist() != [rows, columns]:
            raise parts.error(f"weight_shape is {told.tolist()}; the config asks for {[rows, columns]}")
        scale_NG = parts.scales("weight_scale", shape)
        count = scale_NG.shape[1]
        order_K = grouping(parts, parts.optional("weight_g_idx", columns), count, columns)
        zero_NG = None
        if "weight_zero_point" in parts.left:
            packed = parts.take("weight_zero_point", -(-rows // a_word), count, dtype=(torch.int32,))
            zero_NG = unpack_bits(packed.t().contiguous(), self.bits)[:, :rows].t()
        codes_NK = unpack_bits(words, self.bits)[:, :columns]
        if order_K is not None:
            codes_NK = codes_NK[:, order_K]
        return integers(codes_NK, self.bits, scale_NG, zero_NG, order_K, dynamic=self.dynamic)


class CompressedTensors:
    def __init__(self, config: Options) -> None:
        layout = config.text("format", "")
        groups = config.section("config_groups")
        if groups is None or not groups.values:
            raise config.error("config_groups", "is missing")
        sparsity = config.section("sparsity_config")
        if sparsity is not None and sparsity.text("format", "dense") != "dense":
            raise config.error("sparsity_config", "is not supported: the weights are stored sparse")
        self.groups: list[_Group] = []
        for name in groups.values:
            group = groups.section(name)
            if group is None:
                raise groups.error(name, "is missing")
            self.groups.append(_Group(group, layout))

    def read(self, path: str, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Scheme:
        named = [group for group in self.groups if matches(path, group.targets)]
        found = named or [group for group in self.groups if "Linear" in group.targets]
        parts = Parts(path, tensors)
        if not found:
            raise parts.error("is quantised, and no target of config_groups matches it")
        scheme = found[0].read(parts, shape)
        parts.done()
        return scheme
