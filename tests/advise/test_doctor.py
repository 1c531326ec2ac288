"""`octavo doctor`: findings on this machine, and on machines that are made worse for it."""

from __future__ import annotations

import importlib.metadata
import json
import resource
import shutil
import socket
from pathlib import Path

import pytest
import torch

from octavo.advise import doctor
from octavo.advise.doctor import Finding, examine
from octavo.bench.shapes import write_shape
from octavo.cli.main import main
from octavo.core.config import EngineConfig
from tests.builders import edit_config
from tests.pooling_models import make_pooling_model


def found(port: int = 0, **flags) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine(EngineConfig(**flags), port)}


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    findings = found(device="cpu")
    assert findings["runs in"].found.endswith("on cpu")
    assert findings["attention"].found.startswith("torch runs; hopper cannot: ")
    assert findings["architecture"].found.startswith("LlamaForCausalLM")
    assert findings["torch"].found == torch.__version__ and findings["torch"].mend is None
    assert "fused kernels" not in findings  # those of a GPU
    main(["doctor", "--device", "cpu", "--json", "--port", "0"])
    assert {row["what"] for row in json.loads(capsys.readouterr().out)} == set(findings)


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "msgspec":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "tokenizers" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    findings = found(device="cpu")
    assert (findings["msgspec"].mend or "").startswith("pip install 'msgspec")
    assert (findings["tokenizers"].mend or "").startswith("pip install 'tokenizers")
    assert main(["doctor", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "!!  msgspec" in out and "To mend:" in out


def test_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "give --port" in (found(port, device="cpu")[f"port {port}"].mend or "")


def test_a_poor_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 256))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "not" / "there"))
    findings = found(device="cpu")
    assert (findings["open files"].mend or "").startswith("ulimit -n")
    assert findings["shared memory"].mend and findings["model cache"].mend
    assert str(tmp_path) in findings["kernel cache"].found and findings["kernel cache"].mend


def test_a_driver_without_a_cuda_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM")
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", driver)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built with CUDA" in (found(device="cpu")["devices"].mend or "")


def test_what_cannot_serve_a_model(tmp_path: Path) -> None:
    findings = found(device="cpu", attention_backend="triton")
    assert findings["attention"].mend and "triton cannot" in findings["attention"].found
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLLM"]}')
    findings = found(device="cpu", model=str(tmp_path))
    assert "LlamaForCausalLM" in findings[str(tmp_path)].found  # the nearest name


def test_quantised_layers(tmp_path: Path) -> None:
    assert "quantised layers" not in found(device="cpu")
    assert found(device="cpu", quantization="int8")["quantised layers"].found.startswith("int8 x int8 runs")
    folder = write_shape("llama-3.2-1b", tmp_path / "llama")
    edit_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    told = found(device="cpu", model=str(folder))["quantised layers"].found
    assert told.startswith("decoded when it is loaded; int4 on CPU: the weights are not 4-bit integers")


def test_attention_of_models_that_read(tmp_path: Path) -> None:
    findings = found(device="cpu", model=str(make_pooling_model(tmp_path, "BertModel")))
    assert "runs" in findings["attention"].found and "CUDA graphs" not in findings
