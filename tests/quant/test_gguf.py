"""GGUF files written by hand: read as what they stand for, refused where they are cut or wrong."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.core.errors import ModelError
from octavo.core.gguf.file import TYPES, GgufFile
from octavo.models.gguf import LAYERS
from octavo.models.loader import load_model
from octavo.quant.gguf import READERS
from tests.builders import make_model
from tests.quant.layouts import SHAPE
from tests.quant.test_checkpoints import logprobs

Tensors = dict[str, tuple[int, tuple[int, ...], bytes]]  # type, shape, bytes


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def written(path: Path, kind: str, tensors: Tensors) -> Path:
    keys = text("general.architecture") + struct.pack("<I", 8) + text(kind)
    keys += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    header, data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 2) + keys, b""
    for name, (number, shape, content) in tensors.items():
        header += text(name) + struct.pack("<I", len(shape))
        header += b"".join(struct.pack("<Q", size) for size in reversed(shape)) + struct.pack("<IQ", number, len(data))
        data += content + b"\0" * (-len(content) % 32)
    path.write_bytes(header + b"\0" * (-len(header) % 32) + data)
    return path


def q8_0(weight: np.ndarray) -> tuple[bytes, np.ndarray]:
    blocks = weight.reshape(-1, 32)
    scale = np.maximum(np.abs(blocks).max(1, keepdims=True) / 127, 1e-4).astype(np.float16)
    codes = np.clip(np.rint(blocks / scale.astype(np.float32)), -127, 127).astype(np.int8)
    content = b"".join(s.tobytes() + c.tobytes() for s, c in zip(scale, codes, strict=True))
    return content, (codes * scale.astype(np.float32)).reshape(weight.shape)


@pytest.mark.parametrize(("family", "kind"), [("llama", "llama"), ("qwen3", "qwen3"), ("gemma2", "gemma2")])
def test_a_model(tmp_path: Path, family: str, kind: str) -> None:
    folder, plain = make_model(tmp_path, family, **SHAPE), make_model(tmp_path, family, **SHAPE)
    stored = load_file(plain / "model.safetensors")
    names = {hub: own for own, hub in LAYERS[kind].items()}
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    tensors: Tensors = {}
    for name, tensor in stored.items():
        path = name.removesuffix(".weight")
        own = top.get(path)
        if own is None:
            _, _, layer, part = path.split(".", 3)
            own = f"blk.{layer}.{names[part]}"
        values = tensor.float().numpy()
        if values.ndim == 1:
            shifted = values + 1 if kind.startswith("gemma") else values
            tensors[f"{own}.weight"] = (0, values.shape, shifted.astype("<f4").tobytes())
            continue
        content, exact = q8_0(values)
        stored[name] = torch.tensor(exact)
        if kind == "llama" and own.endswith(("attn_q", "attn_k")):
            heads = 4 if own.endswith("q") else 2
            turned = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
            content = q8_0(turned)[0]
        tensors[f"{own}.weight"] = (8, values.shape, content)
    save_file(stored, plain / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = written(folder / "model-q8_0.gguf", kind, tensors)
    (answer, found), (expected_answer, expected) = logprobs(folder), logprobs(plain)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert answer == expected_answer
    with pytest.raises(ModelError, match="quantised already"):
        load_model(folder, quantization="int8")
    written(file, kind, {name: given for name, given in tensors.items() if "blk.1.ffn_up" not in name})
    with pytest.raises(ModelError, match=r"1\.mlp\.up_proj\.weight is missing"):
        load_model(folder)
    written(file, kind, {**tensors, "blk.0.strange.weight": (0, (4,), bytes(16))})
    with pytest.raises(ModelError, match="strange"):
        load_model(folder)
    written(file, "mamba", tensors)
    with pytest.raises(ModelError, match="general.architecture"):
        load_model(folder)


def test_cut_anywhere(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole.gguf", "llama", {"a.weight": (8, (2, 32), bytes(68))}).read_bytes()
    assert GgufFile(tmp_path / "whole.gguf").tensors["a.weight"].shape == (2, 32)
    for size in range(1, len(whole) - 32):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(ModelError):
            GgufFile(tmp_path / "cut.gguf")


@pytest.mark.parametrize("change", [(0, b"GGML"), (4, b"\x09"), (8, b"\xff" * 8), (16, b"\xff" * 8), (24, b"\xff" * 8)])
def test_wrong_headers(tmp_path: Path, change: tuple[int, bytes]) -> None:
    file = written(tmp_path / "a.gguf", "llama", {"a.weight": (8, (2, 32), bytes(68))})
    at, value = change
    content = bytearray(file.read_bytes())
    content[at : at + len(value)] = value
    file.write_bytes(content)
    with pytest.raises(ModelError):
        GgufFile(file)


def test_types_that_are_not_known(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="type 16"):
        GgufFile(written(tmp_path / "a.gguf", "llama", {"a.weight": (16, (2, 256), bytes(132))}))


@pytest.mark.parametrize("number", [number for number, kind in TYPES.items() if kind.values > 1])
def test_blocks_as_the_gguf_package_reads_them(number: int) -> None:
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    kind = TYPES[number]
    raw = np.random.default_rng(number).integers(0, 256, (4, 2, kind.bytes), dtype=np.uint8)
    for at in {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(kind.name, (0,)):
        raw[..., at : at + 2] = np.full((4, 2, 1), 0.013, dtype=np.float16).view(np.uint8)
    expected = quants.dequantize(raw.reshape(4, -1), GGMLQuantizationType(number))
    np.testing.assert_array_equal(READERS[kind.name](torch.from_numpy(raw)).dequantize(torch.float32).numpy(), expected)
