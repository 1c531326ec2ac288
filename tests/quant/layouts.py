"""Checkpoints as the tools of each format write them, packed here with Python's integers and numpy alone.

A layout turns a matrix into (the numbers that it stands for, tensors by what follows the module's path).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.builders import edit_config, make_model

Layout = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, dict[str, Tensor]]]
SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}


def make_pair(
    root: Path, layout: Layout, config: dict[str, Any], family: str = "llama", **shape: Any
) -> tuple[Path, Path]:
    """Folders of a quantised model and of the plain one that it stands for."""
    plain = make_model(root, family, **{**SHAPE, **shape})
    packed = make_model(root, family, **{**SHAPE, **shape})
    stored = load_file(plain / "model.safetensors")
    rng = np.random.default_rng(0)
    exact, written = dict(stored), {}
    for name, tensor in stored.items():
        if not name.endswith("_proj.weight"):
            written[name] = tensor
            continue
        numbers, parts = layout(tensor.double().numpy(), rng)
        exact[name] = torch.tensor(numbers, dtype=tensor.dtype)
        written |= {f"{name.removesuffix('weight')}{suffix}": part.contiguous() for suffix, part in parts.items()}
    save_file(exact, plain / "model.safetensors")
    save_file(written, packed / "model.safetensors")
    edit_config(packed, quantization_config=config)
    return packed, plain


def affine(
    weight: np.ndarray, bits: int, group: int, symmetric: bool, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes [N, K], scales [N, G] that float16 holds, zeros [N, G], and the numbers."""
    rows, columns = weight.shape
    group = columns if group == -1 else group
    groups = np.arange(columns) // group if groups is None else groups
    count = columns // group
    scale, zero = np.zeros((rows, count)), np.zeros((rows, count), dtype=np.int64)
    for g in range(count):
        part = weight[:, groups == g]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if symmetric:
            scale[:, g] = np.abs(part).max(1) / (2 ** (bits - 1) - 1)
            zero[:, g] = 2 ** (bits - 1)
        else:
            scale[:, g] = (high - low) / (2**bits - 1)
    scale = np.maximum(scale, 1e-4).astype(np.float16).astype(np.float64)
    if not symmetric:
        for g in range(count):
            zero[:, g] = np.clip(np.rint(-np.minimum(weight[:, groups == g].min(1), 0) / scale[:, g]), 0, 2**bits - 1)
    codes = np.clip(np.rint(weight / scale[:, groups]) + zero[:, groups], 0, 2**bits - 1).astype(np.int64)
    return codes, scale, zero, (codes - zero[:, groups]) * scale[:, groups]


def words(numbers: list[int], bits: int) -> list[int]:
    """A stream of numbers in words of 32 bits, as signed integers."""
    stream = sum(int(number) << bits * place for place, number in enumerate(numbers))
    size = -(-len(numbers) * bits // 32) * 4
    return list(np.frombuffer(stream.to_bytes(size, "little"), dtype="<i4"))


def packed_rows(numbers: np.ndarray, bits: int) -> Tensor:
    return torch.tensor(np.array([words(row, bits) for row in numbers.tolist()]), dtype=torch.int32)


def gptq(bits: int, group: int, symmetric: bool, act_order: bool = False, version: int = 1) -> Layout:
    def layout(weight: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Tensor]]:
        columns = weight.shape[1]
        size = columns if group == -1 else group
        groups = np.arange(columns) // size
        if act_order:
            groups = rng.permutation(groups)
        codes, scale, zero, numbers = affine(weight, bits, group, symmetric, groups)
        stored = (zero - (version == 1)) % 2**bits
        return numbers, {
            "qweight": packed_rows(codes, bits).t(),
            "qzeros": packed_rows(stored.T, bits),
            "scales": torch.tensor(scale.T, dtype=torch.float16),
            "g_idx": torch.tensor(groups, dtype=torch.int32),
        }

    return layout


def awq(group: int) -> Layout:
    def by_eights(numbers: np.ndarray) -> Tensor:
        """[other, N / 8] from [other, N]."""
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        rows = [
            [words([eight[place] for place in order], 4)[0] for eight in np.split(row, len(row) // 8)]
            for row in numbers
        ]
        return torch.tensor(np.array(rows), dtype=torch.int32)

    def layout(weight: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Tensor]]:
        codes, scale, zero, numbers = affine(weight, 4, group, False)
        scales = torch.tensor(scale.T, dtype=torch.float16)
        return numbers, {"qweight": by_eights(codes.T), "qzeros": by_eights(zero.T), "scales": scales}

    return layout


def pack_quantized(bits: int, group: int, symmetric: bool, act_order: bool = False) -> Layout:
    def layout(weight: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Tensor]]:
        rows, columns = weight.shape
        groups = np.arange(columns) // (columns if group == -1 else group)
        if act_order:
            groups = rng.permutation(groups)
        codes, scale, zero, numbers = affine(weight, bits, group, symmetric, groups)
        parts = {
            "weight_packed": packed_rows(codes, bits),
            "weight_scale": torch.tensor(scale, dtype=torch.float16),
            "weight_shape": torch.tensor([rows, columns]),
        }
        if not symmetric:
            parts["weight_zero_point"] = packed_rows(zero.T, bits).t()
        if act_order:
            parts["weight_g_idx"] = torch.tensor(groups, dtype=torch.int32)
        return numbers, parts

    return layout


def int8_rows(scale_name: str = "weight_scale", factor: float = 1.0, static: float | None = None) -> Layout:
    def layout(weight: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Tensor]]:
        scale = (np.abs(weight).max(1, keepdims=True) / 127).astype(np.float32)
        codes = np.clip(np.rint(weight / scale), -127, 127)
        stored = torch.tensor(scale * factor)
        parts = {"weight": torch.tensor(codes, dtype=torch.int8)}
        parts[scale_name] = stored.flatten() if scale_name == "SCB" else stored
        if scale_name == "SCB":
            parts["weight_format"] = torch.tensor(0, dtype=torch.uint8)
        if static is not None:
            parts["input_scale"] = torch.tensor([static])
        return codes * scale, parts

    return layout


def fp8(kind: str, name: str, block: int = 64, static: float | None = None) -> Layout:
    def layout(weight: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Tensor]]:
        rows, columns = weight.shape
        if kind == "tensor":
            scale = np.abs(weight).max() / 448
            wide = np.full((rows, columns), scale)
            stored = torch.tensor(scale, dtype=torch.float32)
        elif kind == "channel":
            scale = np.abs(weight).max(1, keepdims=True) / 448
            wide = np.repeat(scale, columns, 1)
            stored = torch.tensor(scale, dtype=torch.float32)
        else:
            tiles = (-(-rows // block), -(-columns // block))
            scale = np.zeros(tiles)
            for r, c in np.ndindex(tiles):
                scale[r, c] = np.abs(weight[r * block : (r + 1) * block, c * block : (c + 1) * block]).max() / 448
            wide = np.kron(scale, np.ones((block, block)))[:rows, :columns]
            stored = torch.tensor(scale, dtype=torch.float32)
        codes = torch.tensor(weight / wide).to(torch.float8_e4m3fn)
        parts = {"weight": codes, name: stored}
        if static is not None:
            parts["input_scale"] = torch.tensor(static)
        return codes.double().numpy() * wide, parts

    return layout


NF4 = np.array(
    [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0]
    + [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.5626170, 0.72295684, 1.0]
)


def bits_and_bytes(size: int = 64, nested: bool = False) -> Layout:
    def layout(weight: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Tensor]]:
        blocks = weight.reshape(-1, size)
        absmax = np.abs(blocks).max(1)
        state = {"quant_type": "nf4", "blocksize": size, "dtype": "bfloat16", "shape": list(weight.shape)}
        parts = {}
        if nested:
            offset, values = float(absmax.mean()), np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
            inner = np.array([np.abs(part).max() for part in np.split(absmax - offset, range(256, len(absmax), 256))])
            spread = np.repeat(inner, 256)[: len(absmax)]
            codes = np.abs((absmax - offset)[:, None] / spread[:, None] - values).argmin(1)
            absmax = values[codes] * spread + offset
            parts["weight.absmax"] = torch.tensor(codes, dtype=torch.uint8)
            parts["weight.nested_absmax"] = torch.tensor(inner, dtype=torch.float32)
            parts["weight.nested_quant_map"] = torch.tensor(values)
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        else:
            parts["weight.absmax"] = torch.tensor(absmax, dtype=torch.float32)
        codes = np.abs(blocks[..., None] / absmax[:, None, None] - NF4).argmin(-1).reshape(-1)
        parts["weight"] = torch.tensor(codes[::2] * 16 + codes[1::2], dtype=torch.uint8)[:, None]
        parts["weight.quant_map"] = torch.tensor(NF4, dtype=torch.float32)
        text = json.dumps(state).encode()
        parts["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
        return (NF4[codes].reshape(-1, size) * absmax[:, None]).reshape(weight.shape), parts

    return layout
