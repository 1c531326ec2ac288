"""The engine's own benchmarks on a small model with random weights and no tokenizer."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from octavo.bench import offline, startup
from octavo.cli.main import main
from octavo.core.config import EngineConfig
from octavo.core.errors import EngineError
from tests.builders import make_model

STEP_KEYS = {"steps", "tokens_per_step", "mean_ms", "median_ms", "host_ms", "gpu_ms"}
USE_KEYS = {"bytes_moved", "bandwidth", "bandwidth_share", "flops", "flop_rate", "flop_share"}
ENGINE = ["--device", "cpu", "--dtype", "float32", "--disable-tqdm"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a model of which only the config is there."""
    folder = tmp_path_factory.mktemp("bare")
    shutil.copy(make_model(tmp_path_factory.mktemp("model"), "llama") / "config.json", folder)
    return ["--model", str(folder), "--load-format", "dummy"]


def run(flags: list[str], result: Path) -> Any:
    assert main(["bench", *flags, "--output-json", str(result)]) == 0
    return json.loads(result.read_text())


def test_throughput(bare: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load = ["--num-prompts", "6", "--input-len", "20", "--output-len", "5", "--num-warmups", "2", "--n", "2"]
    device = ["--device-bandwidth", "1e9", "--device-flops", "1e12", "--plot", str(tmp_path / "steps.png")]
    result = run(["throughput", *bare, *ENGINE, *load, *device], tmp_path / "r.json")
    assert (result["num_requests"], result["total_num_tokens"], result["total_output_tokens"]) == (6, 6 * 30, 60)
    assert result["requests_per_second"] == pytest.approx(6 / result["elapsed_time"])
    assert result["tokens_per_second"] == pytest.approx(180 / result["elapsed_time"])
    assert set(result) >= USE_KEYS | {"model_id", "elapsed_time", "device"}
    assert result["bandwidth_share"] == pytest.approx(result["bandwidth"] / 1e9)
    steps = result["steps"]
    assert all(set(found) >= STEP_KEYS | USE_KEYS for found in steps.values())
    # Every prompt once (a twin computes the last token again), every answer but its last token.
    computed = sum(found["steps"] * found["tokens_per_step"] for found in steps.values())
    assert computed == pytest.approx(6 * (20 + 1) + 12 * 4)
    assert set(steps["decode"]["host_ms"]) == {"schedule", "upload", "forward", "sample", "update", "wait"}
    assert sum(found["flops"] for found in steps.values()) == result["flops"]
    out = capsys.readouterr().out
    assert f"Throughput: {result['requests_per_second']:.2f} requests/s, " in out
    assert "Total num prompt tokens:  120\nTotal num output tokens:  60\n" in out
    assert "Bandwidth use: " in out and "% of 1.00 GB/s)" in out and "Host, forward (ms):" in out
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")


def test_throughput_of_the_servers_engine(tmp_path: Path) -> None:
    load = ["--num-prompts", "3", "--input-len", "8", "--output-len", "4", "--async-engine", "--device", "cpu"]
    result = run(["throughput", *load, "--disable-tqdm"], tmp_path / "r.json")
    assert (result["num_requests"], result["total_output_tokens"]) == (3, 12)
    assert main(["bench", "throughput", *load, "--plot", "x.png"]) == 1


def test_latency(bare: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load = ["--input-len", "8", "--output-len", "4", "--num-iters", "3", "--num-iters-warmup", "1"]
    result = run(["latency", *bare, *ENGINE, *load, "--batch-size", "2"], tmp_path / "r.json")
    assert set(result) >= USE_KEYS | {"model_id", "avg_latency", "latencies", "percentiles", "steps"}
    assert len(result["latencies"]) == 3 and list(result["percentiles"]) == ["10", "25", "50", "75", "90", "99"]
    assert result["avg_latency"] == pytest.approx(sum(result["latencies"]) / 3)
    assert (result["steps"]["prompts"]["steps"], result["steps"]["decode"]["steps"]) == (3, 9)
    assert f"Avg latency: {result['avg_latency']} seconds\n10% percentile latency: " in capsys.readouterr().out
    several = ["--batch-size", "1", "3", "--temperature", "0"]
    picture = tmp_path / "batches.png"
    both = run(["latency", *bare, *ENGINE, *load, *several, "--plot", str(picture)], tmp_path / "both.json")
    assert [one["batch_size"] for one in both] == [1, 3] and picture.read_bytes().startswith(b"\x89PNG")
    assert [one["steps"]["decode"]["tokens_per_step"] for one in both] == [1, 3]
    again = tmp_path / "again.png"
    assert main(["bench", "plot", str(again), str(tmp_path / "r.json"), str(tmp_path / "both.json")]) == 0
    assert again.read_bytes().startswith(b"\x89PNG")


def test_beams_and_profiles(bare: list[str], tmp_path: Path) -> None:
    load = ["--input-len", "8", "--output-len", "3", "--num-iters", "1", "--num-iters-warmup", "0", "--n", "2"]
    result = run(["latency", *bare, *ENGINE, *load, "--batch-size", "2", "--use-beam-search"], tmp_path / "r.json")
    assert len(result["latencies"]) == 1
    assert main(["bench", "latency", *bare, *ENGINE, *load, "--profile", "--profile-dir", str(tmp_path / "p")]) == 0
    assert json.loads((tmp_path / "p" / "trace.json").read_text())["traceEvents"]


def test_errors_are_one_line(bare: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert main(["bench", "latency", *bare, *ENGINE, "--output-len", "9999"]) == 1
    assert capsys.readouterr().err.startswith("octavo: input-len and output-len must be ")
    assert main(["bench", "throughput", *bare, "--dataset-name", "custom"]) == 1
    assert "octavo: dataset-path: custom needs a file\n" in capsys.readouterr().err
    (tmp_path / "odd.json").write_text('{"steps": 3}\n{"completed": 3}')
    assert main(["bench", "plot", str(tmp_path / "x.png"), str(tmp_path / "odd.json")]) == 1
    assert "no common plot" in capsys.readouterr().err
    assert main(["bench", "plot", str(tmp_path / "x.png"), str(tmp_path / "none.json")]) == 1
    assert "holds no results" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "latency", *bare, "--plot", "x.png"]) == 1
    assert capsys.readouterr().err == "octavo: --plot needs matplotlib: pip install 'octavo[bench]'\n"


def test_a_start(bare: list[str]) -> None:
    with offline.usable(EngineConfig(model=bare[1], load_format="dummy", device="cpu")) as config:
        found = startup.measure_start(config)
    phases = dict(found["phases"])
    assert 0 < found["startup"] < found["first_answer"] and found["compilation"] == 0.0
    assert sum(phases.values()) == pytest.approx(found["first_answer"]) and min(phases.values()) >= 0
    assert phases["import torch"] > 0 and dict(found["memory"])["weights"]
    with pytest.raises(EngineError, match="the engine cannot start: ."):
        startup.measure_start(EngineConfig(model="/", device="cpu"))


def test_figures_of_starts() -> None:
    def start(seconds: float) -> dict[str, Any]:
        phases = [["import torch", seconds / 2], ["first answer", 0.5]]
        memory = [["weights", "1 GiB"]]
        return {
            "startup": seconds,
            "first_answer": seconds + 0.5,
            "compilation": 1.0,
            "phases": phases,
            "memory": memory,
        }

    result = startup.startup_result({"cold": [start(4.0), start(6.0)], "warm": [start(2.0)]})
    for kind in ("cold", "warm"):
        for name in ("startup", "compilation", "first_answer"):
            keys = {f"avg_{kind}_{name}_time", f"{kind}_{name}_times", f"{kind}_{name}_percentiles"}
            assert keys <= set(result)
    assert result["avg_cold_startup_time"] == 5.0 and result["cold_startup_times"] == [4.0, 6.0]
    assert result["cold_startup_percentiles"]["90"] == pytest.approx(5.8)
    assert result["cold_phases"] == {"import torch": 2.5, "first answer": 0.5}
    lines = startup.startup_lines(result)
    wanted = ["COLD STARTUP:", "Avg startup time: 5.00 seconds", "  90%: 5.80 seconds", "Memory, weights: 1 GiB"]
    assert set(wanted) <= set(lines) and "WARM STARTUP:" in lines
    assert "COLD STARTUP:" not in startup.startup_lines(startup.startup_result({"warm": [start(1.0)]}))
