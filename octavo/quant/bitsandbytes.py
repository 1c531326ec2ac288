"""bitsandbytes: nf4 and fp4 with a scale a block of neighbouring values, and int8 with a scale a row.

Four bits: `weight` [N * K / 2, 1], the first of two values in the upper half; `weight.absmax`, `weight.quant_map`
and a JSON text in bytes, `weight.quant_state.bitsandbytes__nf4`. With double quantisation absmax is bytes into
`weight.nested_quant_map`, times `weight.nested_absmax`, plus an offset. Eight bits: `weight` int8 and `SCB`, the
largest value of each row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from octavo.quant.formats import Options, Parts
from octavo.quant.schemes import Integers, Plain, Scheme, Table

STATE = "weight.quant_state.bitsandbytes__"


class BitsAndBytes:
    def __init__(self, config: Options) -> None:
        if config.flag("load_in_4bit", False) == config.flag("load_in_8bit", False):
            raise config.error("load_in_4bit", "or load_in_8bit must be true, one of them")

    def read(self, path: str, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Scheme:
        parts = Parts(path, tensors)
        if "SCB" in tensors:
            code_NK = parts.take("weight", *shape, dtype=(torch.int8,))
            scale_NG = parts.scales("SCB", shape) / 127
            parts.drop("weight_format")
            parts.done()
            return Integers(code_NK, scale_NG)
        scheme = self._four(parts, shape)
        parts.done()
        return scheme

    def _four(self, parts: Parts, shape: tuple[int, int]) -> Scheme:
        rows, columns = shape
        kind = next((name[len(STATE) :] for name in parts.left if name.startswith(STATE)), None)
        if kind not in ("nf4", "fp4"):
            raise parts.error("has no quant_state of nf4 or fp4")
        state = _state(parts, parts.left.pop(STATE + kind))
        size = state.get("blocksize")
        if type(size) is not int or size <= 0 or state.get("shape") != [rows, columns]:
            raise parts.error(f"quant_state must have a blocksize and the shape {[rows, columns]}")
        if rows * columns % (2 * size):
            raise parts.error(f"blocks of {size} do not fill a matrix of {rows} x {columns}")
        packed = parts.left.pop("weight", torch.empty(0))
        if packed.dtype != torch.uint8 or packed.numel() * 2 != rows * columns:
            raise parts.error(f"weight must be {rows * columns // 2} bytes")
        table = parts.take("weight.quant_map", 16).float()
        absmax = parts.take("weight.absmax", rows * columns // size)
        if absmax.dtype == torch.uint8:
            absmax = self._nested(parts, absmax, state)
        flat = packed.reshape(-1)
        swapped = flat << 4 | flat >> 4
        if columns % size == 0:
            return Table(swapped.view(rows, -1), absmax.float().view(rows, -1), table)
        blocks = Table(swapped.view(-1, size // 2), absmax.float().view(-1, 1), table)  # they run over rows' ends
        return Plain(blocks.dequantize(torch.float32).view(rows, columns))

    def _nested(self, parts: Parts, absmax: Tensor, state: dict[str, Any]) -> Tensor:
        size, offset = state.get("nested_blocksize"), state.get("nested_offset")
        if type(size) is not int or size <= 0 or not isinstance(offset, (int, float)):
            raise parts.error("quant_state must have nested_blocksize and nested_offset")
        scales = parts.take("weight.nested_absmax", -(-len(absmax) // size)).float()
        values = parts.take("weight.nested_quant_map", 256).float()
        found: Tensor = values[absmax.int()] * scales.repeat_interleave(size)[: len(absmax)] + offset
        return found


def _state(parts: Parts, tensor: Tensor) -> dict[str, Any]:
    try:
        state = json.loads(bytes(tensor.to(torch.uint8).tolist()))
    except (ValueError, RecursionError):
        state = None
    if type(state) is not dict:
        raise parts.error("quant_state is not a JSON object")
    return state
