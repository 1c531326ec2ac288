from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from octavo.core.errors import ModelError
from octavo.models.loader import INDEX, SINGLE, load_model
from octavo.platforms import cpu
from tests.builders import edit_config, make_model

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model(tmp_path, "qwen3")


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file(tensors, folder / SINGLE)


def test_every_tensor_arrives_where_the_map_says(folder: Path) -> None:
    names = load_model(folder).names
    stored = load_file(folder / SINGLE)
    assert names.keys() == stored.keys()
    assert all(torch.equal(names[name], tensor) for name, tensor in stored.items())


def test_shards(tmp_path: Path) -> None:
    whole = load_model(make_model(tmp_path, "llama"))
    sharded = make_model(tmp_path, "llama", max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 3
    (sharded / "consolidated.safetensors").write_bytes(b"not in the index, so never opened")
    names = load_model(sharded).names
    assert all(torch.equal(names[name], tensor) for name, tensor in whole.names.items())


def test_missing(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop(NAME))
    with pytest.raises(ModelError, match=rf"{NAME} is missing"):
        load_model(folder)
    edit_tensors(folder, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ModelError, match="and 1 more is missing"):
        load_model(folder)


def test_left_over(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"model.layers.9.extra": torch.zeros(3)}))
    with pytest.raises(ModelError, match=r"model\.safetensors: tensor model\.layers\.9\.extra has no place"):
        load_model(folder)


def test_a_bias_that_the_config_does_not_speak_of_is_left_over(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}))
    with pytest.raises(ModelError, match="q_proj.bias has no place"):
        load_model(folder)


def test_known_buffers_are_passed_over(folder: Path) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    edit_tensors(folder, lambda tensors: tensors.update(buffer))
    assert load_model(folder).names.keys().isdisjoint(buffer)


@pytest.mark.parametrize("shape", [(64, 96), (96, 64, 1), (1, 64), (96 * 64,)])
def test_wrong_shape(folder: Path, shape: tuple[int, ...]) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({NAME: torch.zeros(shape)}))
    with pytest.raises(ModelError, match=rf"{NAME} has the shape \[.*asks for \[96, 64\]"):
        load_model(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_wrong_dtype(folder: Path, dtype: torch.dtype) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({NAME: tensors[NAME].to(dtype)}))
    with pytest.raises(ModelError, match=rf"{NAME} has the type"):
        load_model(folder)


def test_floats_of_another_width_are_converted(folder: Path) -> None:
    stored = load_file(folder / SINGLE)
    edit_tensors(folder, lambda tensors: tensors.update({NAME: tensors[NAME].half()}))
    assert torch.equal(load_model(folder).names[NAME], stored[NAME].half().float())


def test_tied_embeddings(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "qwen2", tie_word_embeddings=True)
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    assert head not in load_file(folder / SINGLE)
    model = load_model(folder)
    assert model.names[head].data_ptr() == model.names[embed].data_ptr()
    weight = model.names[embed].clone()

    edit_tensors(folder, lambda tensors: tensors.update({head: tensors[embed].clone()}))
    assert torch.equal(load_model(folder).names[head], weight)
    edit_tensors(folder, lambda tensors: tensors.pop(embed))
    assert torch.equal(load_model(folder).names[embed], weight)
    edit_tensors(folder, lambda tensors: tensors.update({embed: tensors[head] + 1}))
    with pytest.raises(ModelError, match="differs from the one it is tied to"):
        load_model(folder)
    edit_tensors(folder, lambda tensors: [tensors.pop(name) for name in (embed, head)])
    with pytest.raises(ModelError, match="embed_tokens.weight and 1 more is missing"):
        load_model(folder)


def test_duplicates_between_shards(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "llama", max_shard_size="100KB")
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor}, second)
    with pytest.raises(ModelError, match=rf"{second.name}: tensor {name} is in {first.name} too"):
        load_model(folder)


def test_a_shard_that_is_not_there(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "llama", max_shard_size="100KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"{shard.name} does not exist"):
        load_model(folder)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "pytorch_model.bin", 7, ""])
def test_an_index_may_only_name_safetensors_beside_it(folder: Path, name: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {NAME: name}}))
    with pytest.raises(ModelError, match="not a safetensors file beside it"):
        load_model(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {}}])
def test_an_index_without_a_map(folder: Path, index: dict) -> None:
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match="weight_map"):
        load_model(folder)


def test_pickles_are_never_opened(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle, which is never opened"):
        load_model(folder)


def header(entries: dict, body: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


NORM = "model.norm.weight"
CORRUPT = {
    "empty": b"",
    "shorter than a length": b"\x01\x02",
    "header longer than the file": header({}, length=1 << 20),
    "huge header": header({}, length=1 << 62),
    "not JSON": struct.pack("<Q", 4) + b"nope",
    "not text": struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc",
    "deep": struct.pack("<Q", 200_000) + b'{"a":' * 40_000,
    "a list": header([]),
    "past the end": header({NORM: entry(0, 256, [64])}, bytes(16)),
    "negative": header({NORM: entry(-256, 0, [64])}, bytes(256)),
    "backwards": header({NORM: entry(256, 0, [64])}, bytes(256)),
    "overlap": header({NORM: entry(0, 256, [64]), "lm_head.weight": entry(128, 384, [64])}, bytes(384)),
    "hole": header({NORM: entry(128, 384, [64])}, bytes(384)),
    "size is not that of the shape": header({NORM: entry(0, 256, [65])}, bytes(256)),
    "shape overflows": header({NORM: entry(0, 256, [1 << 40, 1 << 40])}, bytes(256)),
    "unknown type": header({NORM: entry(0, 256, [64], "F31")}, bytes(256)),
    "bytes left over": header({NORM: entry(0, 256, [64])}, bytes(512)),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_corrupt_files(folder: Path, case: str) -> None:
    (folder / SINGLE).write_bytes(CORRUPT[case])
    with pytest.raises(ModelError, match=r"model\.safetensors is not a sound safetensors file"):
        load_model(folder)


def test_a_truncated_file(folder: Path) -> None:
    data = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(data[:-1])
    with pytest.raises(ModelError, match="not a sound safetensors file"):
        load_model(folder)


def test_dummy_weights(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "qwen3", attention_bias=True, initializer_range=0.05)
    (folder / SINGLE).unlink()
    first, again, other = (load_model(folder, load_format="dummy", seed=seed).names for seed in (1, 1, 2))
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        if tensor.dim() == 1:
            assert torch.equal(tensor, torch.full_like(tensor, 1.0 if "norm" in name else 0.0))
        else:
            assert not torch.equal(tensor, other[name])
            assert tensor.std() == pytest.approx(0.05, rel=0.1)


def test_dtype_asked_for(folder: Path) -> None:
    model = load_model(folder, dtype="bfloat16")
    assert model.dtype == model.embed.weight_VE.dtype == model.norm.weight_E.dtype == torch.bfloat16
    with pytest.raises(ModelError, match="dtype must be auto or one of"):
        load_model(folder, dtype="int8")


@pytest.mark.parametrize("has", [True, False])
def test_auto_dtype_follows_the_hardware(
    folder: Path, has: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    edit_config(folder, drop=("dtype",), torch_dtype="bfloat16")
    monkeypatch.setattr(cpu, "flags", lambda: frozenset({"avx2", "avx512_bf16"} if has else {"avx2"}))
    with caplog.at_level(logging.WARNING):
        model = load_model(folder)
    assert model.dtype == (torch.bfloat16 if has else torch.float32)
    assert ("no bfloat16 matrix products" in caplog.text) is not has


def test_rope_table_has_the_length_asked_for(folder: Path) -> None:
    (rope,) = load_model(folder, max_model_len=48).ropes.values()
    assert len(rope.table_P1D) == 48
    (rope,) = load_model(folder).ropes.values()
    assert len(rope.table_P1D) == 512


def test_progress_bar_when_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_model(folder, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Loading weights" in captured.err
    load_model(folder)
    assert capsys.readouterr().err == ""
