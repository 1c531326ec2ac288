"""The kernel for whole prompts against its reference: in the interpreter, or on the GPU where there is one."""

from __future__ import annotations

import pytest
import torch

from octavo.attention.base import AttendOptions, AttentionSpec
from octavo.attention.varlen_triton import TritonVarlen
from octavo.kernels import varlen_attention as kernels
from tests.attention.test_varlen import make_batch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = [5, 1, 150, 17, 64, 1, 33]


def run(heads=(4, 2), dim=16, causal=True, window=None, softcap=None, lengths=LENGTHS, dtype=torch.float32):
    """(what the kernel gives, what the reference gives)."""
    generator = torch.Generator().manual_seed(dim)
    joint = torch.randn(sum(lengths), heads[0] + 2 * heads[1], dim, generator=generator).to(DEVICE, dtype)
    q, k, v = joint.split_with_sizes((heads[0], heads[1], heads[1]), 1)
    spec = AttentionSpec(1, *heads, dim, dtype, torch.device(DEVICE), 16, 512)
    backend = TritonVarlen(spec)
    batch = make_batch(backend, lengths)
    batch.query_start_N1 = batch.query_start_N1.to(DEVICE)
    options = AttendOptions(1.2 * dim**-0.5, window, softcap, causal=causal)
    backend.plan(batch)
    backend.write(0, k, v, batch)
    wanted = kernels.reference(q, k, v, batch.query_start_N1, options.scale, causal, window, softcap)
    return backend.attend(0, q, batch, options).double().view_as(wanted), wanted


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads,dim", [((4, 4), 16), ((4, 2), 40), ((7, 1), 32)])
def test_sequences_are_alone(causal: bool, heads: tuple[int, int], dim: int):
    assert error(*run(heads, dim, causal)) < 1e-5


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 9, 64, 100])
def test_windows(causal: bool, window: int):
    assert error(*run(causal=causal, window=window)) < 1e-5


@pytest.mark.parametrize("causal,window", [(True, None), (False, 20)])
def test_soft_caps(causal: bool, window: int | None):
    assert error(*run(causal=causal, window=window, softcap=1.5)) < 1e-5


def test_half_precision():
    assert error(*run(dtype=torch.float16)) < 2e-3


def spoiled(name: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """The error where the kernel is told something wrong."""
    right = kernels.reference
    wrong = {
        "causal": lambda *a: right(*a[:5], not a[5], *a[6:]),
        "window": lambda *a: right(*a[:6], a[6] + 1, *a[7:]),
        "scale": lambda *a: right(*a[:4], a[4] * 1.05, *a[5:]),
        "sequence": lambda *a: right(*a[:3], torch.cat((a[3][:2], a[3][3:])), *a[4:]),
    }
    monkeypatch.setattr(kernels, "reference", wrong[name])
    return error(*run(causal=name != "window", window=9))


@pytest.mark.parametrize("name", ["causal", "window", "scale", "sequence"])
def test_planted_errors_are_seen(name: str, monkeypatch: pytest.MonkeyPatch):
    assert spoiled(name, monkeypatch) > 1e-3


def test_the_backend_says_what_it_cannot():
    spec = AttentionSpec(1, 4, 2, 16, torch.float32, torch.device("cpu"), 16, 512)
    assert TritonVarlen.supports(spec) == "it needs a GPU, not cpu"
