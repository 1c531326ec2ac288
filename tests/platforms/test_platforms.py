from __future__ import annotations

import pytest
import torch

from octavo.core.errors import ConfigError
from octavo.platforms import cpu, cuda, default_dtype, pick_device


def test_cpu_queries() -> None:
    free, total = cpu.memory()
    assert 0 < free <= total
    assert cpu.cores() >= 1
    assert cpu.name()


@pytest.mark.parametrize(
    ("flags", "checkpoint", "chosen"),
    [
        ({"avx2"}, "bfloat16", "float32"),
        ({"avx2"}, "float16", "float32"),
        ({"avx2"}, "float32", "float32"),
        ({"avx512_bf16"}, "bfloat16", "bfloat16"),
        ({"avx512_bf16"}, "float16", "float32"),
        ({"amx_fp16"}, "float16", "float16"),
        ({"asimd", "bf16"}, "bfloat16", "bfloat16"),
        (set(), "bfloat16", "float32"),
    ],
)
def test_default_dtype_of_a_cpu(flags: set[str], checkpoint: str, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "flags", lambda: frozenset(flags))
    dtype, reason = default_dtype(checkpoint, torch.device("cpu"))
    assert dtype == chosen
    assert (reason is None) == (chosen == checkpoint)


@pytest.mark.parametrize(("capability", "chosen"), [((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_default_dtype_of_a_gpu(capability: tuple[int, int], chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "capability", lambda device: capability)
    monkeypatch.setattr(cuda, "name", lambda device: "a GPU")
    assert default_dtype("bfloat16", torch.device("cuda", 0))[0] == chosen
    assert default_dtype("float16", torch.device("cuda", 0)) == ("float16", None)


def test_device_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "unavailable", lambda: "no GPU")
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device cuda: no GPU"):
        pick_device("cuda")


def test_device_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 1)
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.gpu
def test_gpu_queries() -> None:
    device = pick_device("cuda")
    free, total = cuda.memory(device)
    assert 0 < free <= total
    assert cuda.num_sms(device) > 0
    assert cuda.capability(device) >= (7, 0)
    assert cuda.name(device)
