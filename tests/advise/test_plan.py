"""`octavo plan`: the ledger adds up, what is expected is near what was measured, and errors say what to give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.advise.plan import Plan, find_device, lines, matrix_share, plan
from octavo.bench.hardware import Device
from octavo.bench.shapes import write_shape
from octavo.cli.main import main
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError

# Milliseconds a step on one H200: shape, sequences, context, measured (bench/results/h200-2026-11-23.md).
MEASURED = (
    ("llama-3-8b", 1, 128, 3.79),
    ("llama-3-8b", 8, 544, 4.39),
    ("llama-3-8b", 64, 544, 5.86),
    ("llama-3-8b", 256, 544, 11.9),
    ("llama-3.2-1b", 1, 128, 0.79),
    ("llama-3.2-1b", 256, 544, 2.59),
)


def made(
    tmp_path: Path, shape: str = "llama-3-8b", gpu: str = "h200", lengths: tuple[int, int] = (512, 256), **flags
) -> Plan:
    folder = write_shape(shape, tmp_path / shape)
    return plan(EngineConfig(model=str(folder), **flags), folder, find_device(gpu), *lengths)


@pytest.mark.parametrize("shape, batch, context, measured", MEASURED)
def test_expected_is_near_measured(tmp_path: Path, shape: str, batch: int, context: int, measured: float) -> None:
    step = made(tmp_path, shape).step(context, 1, batch)
    assert step.floor * 1e3 < measured
    assert step.expected * 1e3 == pytest.approx(measured, rel=0.12)


def test_prefill_is_near_measured(tmp_path: Path) -> None:
    expected, most = made(tmp_path, lengths=(2048, 256)).prefill_rate()
    assert expected == pytest.approx(42.0e3, rel=0.12)
    assert most > 49e3


def test_the_ledger_adds_up(tmp_path: Path) -> None:
    found = made(tmp_path)
    assert found.parameters == pytest.approx(8.03e9, rel=0.01)
    assert found.device.memory is not None
    assert sum(found.ledger.values()) == pytest.approx(found.device.memory * 0.92, rel=1e-3)
    assert found.token_bytes == 128 << 10
    assert found.cache_tokens * found.token_bytes <= found.ledger["KV cache"]
    assert made(tmp_path, enforce_eager=True).ledger["CUDA graphs"] == 0
    assert made(tmp_path, kv_cache_memory_bytes=1 << 30).cache_tokens == 8192


def test_a_cache_that_is_small_bounds_the_batch(tmp_path: Path) -> None:
    found = made(tmp_path, gpu="rtx 4090")
    assert found.batch == found.cache_tokens // 640 < 100
    assert found.batches()[-1] == found.batch
    rates = [batch / found.decode(batch).expected for batch in found.batches()]
    assert rates == sorted(rates)


def test_half_the_bytes_are_half_the_floor(tmp_path: Path) -> None:
    wide, narrow = made(tmp_path, dtype="float32").decode(1), made(tmp_path).decode(1)
    assert wide.floor == pytest.approx(2 * narrow.floor, rel=1e-6)


def test_matrix_share() -> None:
    assert matrix_share(1) == 0.97
    assert 0.87 < matrix_share(4) < 0.97
    assert matrix_share(5000) == 0.80


def test_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not fit: .* GiB before the KV cache"):
        made(tmp_path, gpu="rtx 4090", dtype="float32")
    with pytest.raises(ConfigError, match="more than the 8192 tokens that the model is made for"):
        made(tmp_path, max_model_len=9000)
    with pytest.raises(ConfigError, match="--input-len 8000 and --output-len 256 are more than the longest context"):
        made(tmp_path, lengths=(8000, 256))


def test_unknown_devices() -> None:
    with pytest.raises(ConfigError, match="nothing is known of 'abacus'; known: .*h200"):
        find_device("abacus")
    assert find_device("abacus", 1.5, 1e9, 1e12) == Device("abacus", 1e9, 1e12, 3 << 29)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "llama-3-8b", "--gpu", "h200", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["decode"][0]["batch"] == 1
    assert record["sequences_at_once"] == 1024
    assert main(["plan", "--gpu", "l4", "--input-len", "100"]) == 0  # the demo model
    out = capsys.readouterr().out
    assert "l4: 22.0 GiB" in out and "prompts of 100 with answers of 256" in out
    assert main(["plan", "llama-3-8b", "--gpu", "abacus"]) == 1
    assert "octavo: --gpu: nothing is known" in capsys.readouterr().err


def test_lines_and_record_say_the_same(tmp_path: Path) -> None:
    found = made(tmp_path)
    text, record = "\n".join(lines(found)), found.record()
    assert f"{record['requests_per_s']['expected']:.1f} a second expected" in text
    assert f"{record['kv_cache_tokens']:,} tokens" in text
