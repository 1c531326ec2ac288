"""Folders without weights are shapes that the engine accepts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

import octavo.bench.offline
from octavo.bench import shapes
from octavo.bench.hardware import Cost
from octavo.cli.main import main
from octavo.core.config import EngineConfig
from octavo.models.spec import ModelSpec
from octavo.text.tokenizer import load_tokenizer


@pytest.mark.parametrize(("name", "billions"), [("llama-3-8b", 8.03), ("llama-3.2-1b", 1.24)])
def test_shapes_have_the_parameters_of_their_models(name: str, billions: float, tmp_path: Path) -> None:
    folder = shapes.write_shape(name, tmp_path / "new" / "folder", 4096)
    spec = ModelSpec.from_folder(folder)
    hidden, kv = spec.hidden_size, spec.num_kv_heads * spec.head_dim
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * spec.intermediate_size
    embeddings = spec.vocab_size * hidden * (1 if spec.tie_embeddings else 2)
    assert (spec.num_layers * layer + embeddings) / 1e9 == pytest.approx(billions, abs=0.005)
    assert (spec.max_position, spec.dtype) == (4096, "bfloat16")
    assert load_tokenizer(folder).vocab_size == 1


@pytest.mark.parametrize(
    ("name", "billions"), [("qwen3-30b-a3b", 30.53), ("mixtral-8x7b", 46.70), ("deepseek-v2-lite", 15.71)]
)
def test_shapes_with_experts(name: str, billions: float, tmp_path: Path) -> None:
    folder = shapes.write_shape(name, tmp_path)
    cost, spec = Cost.of_folder(folder), ModelSpec.from_folder(folder)
    assert spec.experts is not None and not spec.tie_embeddings
    assert (cost.layer_bytes + 2 * cost.head_bytes) / 2e9 == pytest.approx(billions, abs=0.005)


def test_the_command_writes_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["shapes", "llama-3.2-1b", str(tmp_path / "x"), "--context", "64"])
    shapes.main()
    assert capsys.readouterr().out == f"{tmp_path / 'x'}\n"
    assert ModelSpec.from_folder(tmp_path / "x").max_position == 64
    monkeypatch.setattr(sys, "argv", ["shapes", "llama-9", str(tmp_path)])
    with pytest.raises(SystemExit):
        shapes.main()


def test_shape_is_a_model_of_the_offline_benchmarks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[EngineConfig, bool]] = []

    def run(options: argparse.Namespace, config: EngineConfig) -> int:
        seen.append((config, ModelSpec.from_folder(Path(config.model or "")).num_layers == 16))
        return 0

    monkeypatch.setattr(octavo.bench.offline, "bench_latency", run)
    assert main(["bench", "latency", "--shape", "llama-3.2-1b", "--seed", "5"]) == 0
    ((config, is_there),) = seen
    assert is_there and config.load_format == "dummy" and config.seed == 5 and not config.enable_prefix_caching
    assert not Path(config.model or "").exists()
    assert main(["bench", "latency", "--shape", "llama-9"]) == 1
    assert main(["bench", "latency", "--shape", "llama-3-8b", "--model", "x"]) == 1
    assert capsys.readouterr().err == (
        f"octavo: --shape llama-9: the shapes are {', '.join(shapes.SHAPES)}\n"
        "octavo: --shape makes the model: leave out --model\n"
    )
