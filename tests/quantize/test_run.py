"""`octavo quantize`: what it writes computes what its numbers stand for, here and in transformers."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.cli.main import main
from octavo.core.errors import ConfigError
from octavo.models.loader import checkpoint_files, load_model
from octavo.quantize import output
from octavo.quantize.recipe import Recipe, find_scheme
from octavo.quantize.run import Report, quantize_folder
from tests.builders import CORPUS, edit_config, load_reference, make_model
from tests.quant.test_checkpoints import logprobs

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
CASES: dict[str, dict[str, Any]] = {
    "fp8": {},
    "fp8-dynamic": {},
    "int8": {},
    "w8a16": {},
    "w8a16 asymmetric": {"symmetric": False},
    "w4a16": {"group_size": 32},
    "w4a16 asymmetric": {"group_size": 32, "symmetric": False},
    "w4a16 gptq": {"group_size": 32, "method": "gptq"},
    "int8 gptq": {"method": "gptq"},
}


def recipe(case: str) -> Recipe:
    return Recipe(find_scheme(case.partition(" ")[0]), **{"samples": 8, "length": 64, **CASES[case]})


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.jsonl"
    lines = [{"text": document} for document in CORPUS]
    lines.append({"messages": [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi."}]})
    file.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return file


def made(tmp_path: Path, case: str, text: Path, family: str = "llama", **shape: Any) -> tuple[Path, Path, Report]:
    source = make_model(tmp_path, family, **{**SHAPE, **shape})
    folder = tmp_path / "out"
    return source, folder, quantize_folder(source, folder, recipe(case), calibration=text)


def plain_copy(folder: Path, place: Path) -> Path:
    """The same numbers as a plain float32 checkpoint, decoded with nothing but numpy."""
    found: dict[str, torch.Tensor] = {}
    stored = {name: tensor for file in checkpoint_files(folder) for name, tensor in load_file(file).items()}
    for name, tensor in stored.items():
        path, _, part = name.rpartition(".")
        if part == "weight" and f"{path}.weight_scale" not in stored:
            found[name] = tensor
        elif part in ("weight", "weight_packed"):
            scale = stored[f"{path}.weight_scale"].double().numpy()
            if part == "weight":
                code = tensor.double().numpy()
            else:
                rows, columns = stored[f"{path}.weight_shape"].tolist()
                each = 32 // (tensor.shape[1] * 32 // columns)
                code = unpacked(tensor.numpy(), each)[:, :columns]
                if f"{path}.weight_zero_point" in stored:
                    zero = unpacked(stored[f"{path}.weight_zero_point"].numpy().T, each).T[:rows]
                    code = code - np.repeat(zero, columns // zero.shape[1], 1)
            wide = np.repeat(np.atleast_2d(scale), code.shape[1] // np.atleast_2d(scale).shape[1], 1)
            found[f"{path}.weight"] = torch.tensor(code * wide, dtype=torch.float32)
    place.mkdir()
    for file in folder.glob("*.json"):
        (place / file.name).write_bytes(file.read_bytes())
    edit_config(place, drop=("quantization_config",))
    save_file(found, place / "model.safetensors", metadata={"format": "pt"})
    return place


def unpacked(words: np.ndarray, each: int) -> np.ndarray:
    bits = 32 // each
    shifted = words.view(np.uint32)[..., None] >> np.arange(0, 32, bits, dtype=np.uint32)
    return (shifted & (1 << bits) - 1).reshape(len(words), -1).astype(np.float64) - (1 << bits - 1)


@pytest.mark.parametrize("case", CASES)
def test_engine_reads_it(tmp_path: Path, text: Path, case: str) -> None:
    source, folder, report = made(tmp_path, case, text)
    assert len(report.rounded) == 14 and list(report.plain) == ["lm_head"]
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["ignore"] == ["lm_head"]
    assert (folder / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    (answer, found), (expected_answer, expected) = logprobs(folder), logprobs(plain_copy(folder, tmp_path / "plain"))
    rounded = case.startswith("int8")  # activations too
    torch.testing.assert_close(found, expected, atol=0.2 if rounded else 2e-4, rtol=2e-4)
    assert rounded or answer == expected_answer
    assert (expected - logprobs(source)[1]).abs().mean() < 0.3


@pytest.mark.parametrize("case", ["fp8", "fp8-dynamic", "int8", "w8a16", "w4a16 gptq"])
def test_transformers_reads_it(tmp_path: Path, text: Path, case: str) -> None:
    if importlib.util.find_spec("compressed_tensors") is None:
        pytest.skip("needs the package compressed-tensors")
    _, folder, _ = made(tmp_path, case, text)
    plain = plain_copy(folder, tmp_path / "plain")
    ids = torch.arange(40, 90)[None]
    with torch.inference_mode():
        found, expected = (load_reference(place)(ids).logits.float() for place in (folder, plain))
    exact = case.startswith("w")
    if exact:
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    else:  # activations are rounded too
        assert 0 < (found - expected).abs().mean() < 0.1


def test_experts(tmp_path: Path, text: Path) -> None:
    shape = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    source, folder, report = made(tmp_path, "w4a16 gptq", text, "qwen3_moe", **shape)
    assert sum(".experts." in path for path in report.rounded) == 2 * 4 * 3
    assert report.plain["model.layers.0.mlp.gate"]
    torch.testing.assert_close(
        logprobs(folder)[1], logprobs(plain_copy(folder, tmp_path / "plain"))[1], atol=1e-3, rtol=1e-3
    )
    with pytest.raises(ConfigError, match="take fp8-dynamic"):
        quantize_folder(source, tmp_path / "other", recipe("fp8"), calibration=text)


@pytest.mark.parametrize("family", ["gemma2", "deepseek_v3", "phi3"])
def test_families(tmp_path: Path, text: Path, family: str) -> None:
    """Norms on both sides, latents, fused matrices."""
    shape = {"num_key_value_heads": 4} if family == "deepseek_v3" else {}
    source, folder, report = made(tmp_path, "w4a16 gptq", text, family, **shape)
    assert len(report.rounded) > 6
    torch.testing.assert_close(
        logprobs(folder)[1], logprobs(plain_copy(folder, tmp_path / "plain"))[1], atol=1e-3, rtol=1e-3
    )


def test_calibration_sees_what_earlier_layers_have_become(tmp_path: Path, text: Path) -> None:
    """GPTQ's answers on its own text are nearer to the model's than those of rounding to nearest."""
    source, folder, _ = made(tmp_path, "w4a16 gptq", text, num_hidden_layers=3)
    nearest = tmp_path / "nearest"
    quantize_folder(source, nearest, recipe("w4a16"))
    ids = torch.tensor(json.loads(load_ids(source)))[None]
    models = [load_reference(plain_copy(place, place / "plain")) for place in (folder, nearest)]
    with torch.inference_mode():
        exact = load_reference(source)(ids).logits
        errors = [float((model(ids).logits - exact).square().mean()) for model in models]
    assert errors[0] < 0.8 * errors[1]


def load_ids(folder: Path) -> str:
    from octavo.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    return json.dumps([token for document in CORPUS for token in tokenizer.encode(document)][:256])


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "SHARD_BYTES", 40_000)
    source = make_model(tmp_path, **SHAPE, max_shard_size="50KB")
    folder = tmp_path / "out"
    report = quantize_folder(source, folder, recipe("fp8-dynamic"))
    files = checkpoint_files(folder)
    assert len(files) > 3 and all(file.stat().st_size < 200_000 for file in files)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == report.bytes_after
    assert {name for file in files for name in load_file(file)} == set(index["weight_map"])
    load_model(folder)


def test_ignore_and_groups_that_do_not_fit(tmp_path: Path) -> None:
    source = make_model(tmp_path, **{**SHAPE, "intermediate_size": 96})
    wish = Recipe(find_scheme("int4"), group_size=64, ignore=("re:.*layers.0.*q_proj", "o_proj"))
    report = quantize_folder(source, tmp_path / "out", wish)
    assert sorted(report.plain) == ["lm_head", "model.layers.0.mlp.down_proj", *(
        f"model.layers.{part}" for part in
        ("0.self_attn.o_proj", "0.self_attn.q_proj", "1.mlp.down_proj", "1.self_attn.o_proj")
    )]  # fmt: skip
    assert len(report.rounded) == 14 - 5
    load_model(tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--scheme", "int5"], "--scheme must be one of fp8, .*int4"),
        (["--scheme", "int4", "--method", "magic"], "--method must be one of rtn, gptq"),
        (["--scheme", "fp8-dynamic", "--method", "gptq"], "--method gptq is for integers"),
        (["--scheme", "int4", "--method", "gptq"], "--method gptq needs --calibration"),
        (["--scheme", "fp8"], "--scheme fp8 needs --calibration"),
        (["--scheme", "fp8", "--calibration", "nowhere.txt"], "--calibration nowhere.txt cannot be read"),
        (["--scheme", "int8", "--asymmetric"], "--asymmetric is for w4a16 and w8a16"),
        (["--scheme", "int4", "--group-size", "0"], "--group-size must be at least 1"),
        (["--scheme", "int4", "--group-size", "7"], "--group-size must be even"),
        (["--scheme", "int4", "--group-size", "512"], "no matrix that --scheme w4a16 can round"),
        (["--scheme", "int8", "--ignore", "no_such"], "--ignore no_such matches no matrix"),
        (["--scheme", "int8", "--dampening", "2"], "--dampening must be between"),
    ],
)
def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], problem: str) -> None:
    source = make_model(tmp_path, num_hidden_layers=1)
    assert main(["quantize", str(source), str(tmp_path / "out"), *flags]) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(problem, told), told
    assert not (tmp_path / "out" / "config.json").exists()


def test_calibration_lines_that_are_wrong(tmp_path: Path) -> None:
    source, file = make_model(tmp_path, num_hidden_layers=1), tmp_path / "text.jsonl"
    for line, problem in (
        ("{", "line 1 is not JSON"),
        ('{"prompt": 1}', "neither `text` nor `messages`"),
        ('{"messages": [1]}', "line 1: "),
        ("", "there is no text in it"),
    ):
        file.write_text(line)
        with pytest.raises(ConfigError, match=problem):
            quantize_folder(source, tmp_path / "out", recipe("w4a16 gptq"), calibration=file, overwrite=True)


def test_out_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder = make_model(tmp_path, num_hidden_layers=1), tmp_path / "out"
    command = ["quantize", str(source), str(folder), "--scheme", "int8"]
    assert main(command) == 0
    assert "7 matrices are rounded" in capsys.readouterr().out
    assert main(command) == 1
    assert "is not empty" in capsys.readouterr().err
    assert main([*command[:-1], "fp8-dynamic", "--overwrite"]) == 0
    load_model(folder)
    assert main(["quantize", str(source), str(source), "--scheme", "int8", "--overwrite"]) == 1
    assert (source / "model.safetensors").exists()
    assert main(["quantize", str(folder), str(tmp_path / "twice"), "--scheme", "int8"]) == 1
    assert "quantised already" in capsys.readouterr().err
