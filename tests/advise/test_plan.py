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
from tests.builders import edit_config, make_model
from tests.models.cases import CASES
from tests.pooling_models import make_pooling_model
from tests.quant.test_gguf import written

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


# Likewise, of quantised layers and of experts.
OTHERS = (
    ("llama-3-8b", "fp8", 1, 2.81),
    ("llama-3-8b", "fp8", 64, 4.40),
    ("llama-3-8b", "fp8", 256, 9.48),
    ("llama-3-8b", "int4", 1, 2.49),
    ("llama-3-8b", "int4", 64, 5.59),
    ("llama-3-8b", "int4", 256, 16.4),
    ("qwen3-30b-a3b", None, 1, 2.66),
    ("qwen3-30b-a3b", None, 8, 7.70),
    ("qwen3-30b-a3b", None, 256, 20.5),
    ("deepseek-v2-lite", None, 64, 9.35),
    ("mixtral-8x7b", None, 8, 20.6),
    ("mixtral-8x7b", None, 64, 24.6),
)


@pytest.mark.parametrize("shape, quantization, batch, measured", OTHERS)
def test_other_kinds_are_near_measured(
    tmp_path: Path, shape: str, quantization: str | None, batch: int, measured: float
) -> None:
    found = made(tmp_path, shape, quantization=quantization)
    step = found.step(128 if batch == 1 else 544, 1, batch)
    assert step.floor * 1e3 < measured
    assert step.expected * 1e3 == pytest.approx(measured, rel=0.2)


def test_prefill_of_float8_is_near_measured(tmp_path: Path) -> None:
    expected, most = made(tmp_path, lengths=(2048, 256), quantization="fp8").prefill_rate()
    assert expected == pytest.approx(72.3e3, rel=0.12)
    assert most > 90e3


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


def test_quantised_layers_count_with_their_bytes(tmp_path: Path) -> None:
    plain = made(tmp_path)
    linear = plain.cost.layer_bytes // 2
    for method, size in (("fp8", 1.0), ("int8", 1.0), ("int4", 0.5 + 8 / 128)):
        found = made(tmp_path, quantization=method)
        assert found.cost.layer_bytes == pytest.approx(linear * size, rel=1e-6)
        assert plain.ledger["weights"] - found.ledger["weights"] == pytest.approx(linear * (2 - size), rel=1e-6)
        assert found.parameters == plain.parameters and found.decode(1).floor < 0.6 * plain.decode(1).floor
        assert f"linear layers in {size:.2f} bytes a weight" in lines(found)[0]
    folder = write_shape("llama-3-8b", tmp_path / "gptq")
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 64})
    stored = plan(EngineConfig(model=str(folder)), folder, find_device("h200"), 512, 256)
    assert stored.cost.layer_bytes == pytest.approx(linear * (0.5 + 8 / 64), rel=1e-6)
    with pytest.raises(ConfigError, match=r"--quantization fp8: the model is quantised already \(gptq\)"):
        plan(EngineConfig(model=str(folder), quantization="fp8"), folder, find_device("h200"), 512, 256)


def test_quantised_experts(tmp_path: Path) -> None:
    family, overrides = CASES["mixtral"]
    folder = make_model(tmp_path, family, **overrides)

    def of(**flags: str) -> Plan:
        return plan(EngineConfig(model=str(folder), dtype="bfloat16", **flags), folder, find_device("h200"), 16, 16)

    plain, found = of(), of(quantization="int8")
    assert 2 * found.cost.expert_bytes == plain.cost.expert_bytes
    assert found.cost.expert_bytes < found.cost.layer_bytes < plain.cost.layer_bytes * 0.6
    assert "experts in 1.00" in lines(found)[0]
    edit_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    decoded = of()
    assert decoded.cost.expert_bytes == plain.cost.expert_bytes and decoded.cost.layer_bytes < plain.cost.layer_bytes
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True})
    assert of().cost.expert_bytes == plain.cost.expert_bytes


def test_mxfp4(tmp_path: Path) -> None:
    family, overrides = CASES["gpt_oss"]
    folder = make_model(tmp_path, family, **overrides)
    edit_config(folder, quantization_config={"quant_method": "mxfp4"})
    found = plan(EngineConfig(model=str(folder), dtype="bfloat16"), folder, find_device("h200"), 16, 16)
    assert (found.weight_size, found.expert_size) == (None, 0.5 + 1 / 32)


def test_a_gguf_file(tmp_path: Path) -> None:
    folder = write_shape("llama-3.2-1b", tmp_path / "gguf")
    content = bytes(34 * 8)
    written(folder / "model.gguf", "llama", {"blk.0.attn_q.weight": (8, (8, 32), content)})
    found = plan(EngineConfig(model=str(folder)), folder, find_device("h200"), 512, 256)
    assert found.weight_size == 1 + 4 / 32
    with pytest.raises(ConfigError, match=r"--quantization int8: model.gguf is quantised already"):
        plan(EngineConfig(model=str(folder), quantization="int8"), folder, find_device("h200"), 512, 256)


def test_models_that_read_have_no_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(make_pooling_model(tmp_path, "BertModel"))
    capsys.readouterr()
    assert main(["plan", folder, "--gpu", "h200", "--input-len", "64"]) == 0
    out = capsys.readouterr().out
    assert "One text of 64 tokens" in out and "such texts a second" in out
    assert "KV cache" not in out and "Decode step" not in out
    assert main(["plan", folder, "--gpu", "h200", "--input-len", "64", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert set(record["ledger_bytes"]) == {"weights", "workspace"} and "decode" not in record
    assert record["texts_per_s"]["expected"] == pytest.approx(record["prefill_tokens_per_s"]["expected"] / 64)
    assert main(["plan", folder, "--gpu", "h200"]) == 1
    assert "--input-len 512 is more than the longest text, 128 tokens" in capsys.readouterr().err


def test_matrix_share() -> None:
    assert matrix_share("plain", 1) == 0.97
    assert 0.87 < matrix_share("plain", 4) < 0.97
    assert matrix_share("plain", 5000) == 0.80


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
