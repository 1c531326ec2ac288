"""Experts that stay quantised from the checkpoint to the product."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from octavo.core.errors import ModelError
from octavo.engine.build import _context_cost
from octavo.layers import moe
from octavo.layers.moe import Stack
from octavo.models.loader import SINGLE, load_model
from octavo.moe.base import ExpertWeights
from octavo.quant.pack import quantize, to_fp8, to_int8
from octavo.quant.schemes import Float8, Plain, Scheme
from tests.builders import make_model
from tests.models.cases import CASES as FAMILIES
from tests.oracle_attention import PagedSession
from tests.quant.layouts import make_pair
from tests.quant.test_checkpoints import CASES

TOKENS = list(range(5, 40))
SMALL = {"moe_intermediate_size": 64, "num_experts": 3, "num_experts_per_tok": 2}
CPU = torch.device("cpu")


def logits(model) -> Tensor:
    (found,) = PagedSession(model).step([("a", TOKENS)])
    return found


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Of the schemes that reach backends."""
    found: set[str] = set()

    def seen(gate_up: Scheme, down: Scheme, *biases: Tensor | None) -> ExpertWeights:
        found.update((gate_up.kind, down.kind))
        return ExpertWeights(gate_up, down, *biases)

    monkeypatch.setattr(moe, "ExpertWeights", seen)
    return found


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("fp8-blocks", "fp8"),
        ("fp8-tensor-static", "fp8"),
        ("ct-w4a16-asym", "int"),
        ("gptq-4", "int"),
        ("gptq-4-order", "plain"),  # each expert has its own order
        ("awq", "int"),
    ],
)
def test_checkpoints(tmp_path: Path, kinds: set[str], case: str, kind: str) -> None:
    packed, plain = make_pair(tmp_path, *CASES[case], "qwen3_moe", **SMALL)
    model = load_model(packed)
    assert kinds == {kind}
    torch.testing.assert_close(logits(model), logits(load_model(plain)), atol=2e-3, rtol=2e-3)


def rounded(weight: Tensor, method: str) -> Tensor:
    return quantize(weight, method).dequantize(weight.dtype)


@pytest.mark.parametrize(("family", "own"), [("qwen3_moe", {"moe_intermediate_size": 64}), ("gpt_oss", {})])
@pytest.mark.parametrize("method", ["fp8", "int4"])
def test_online(tmp_path: Path, kinds: set[str], family: str, own: dict[str, int], method: str) -> None:
    """Each expert apart, and stacks that lie the other way: as a checkpoint of the rounded weights."""
    name, overrides = FAMILIES[family]
    folder = make_model(tmp_path, name, **{**overrides, "hidden_size": 128, **own})
    quantised = load_model(folder, quantization=method)
    assert kinds == {"fp8" if method == "fp8" else "int"}
    given = load_file(folder / SINGLE)
    for path, tensor in given.items():
        if tensor.dim() == 3 and path.endswith("proj"):
            given[path] = torch.stack([rounded(each.t().contiguous(), method).t() for each in tensor])
        elif path.endswith("_proj.weight"):
            given[path] = rounded(tensor, method)
    save_file(given, folder / SINGLE)
    plain = load_model(folder)
    torch.testing.assert_close(logits(quantised), logits(plain), atol=2e-3, rtol=2e-3)


def test_bytes(tmp_path: Path) -> None:
    """What a model says it takes is what its experts are kept as; and dummy weights are rounded too."""
    name, overrides = FAMILIES["qwen3_moe"]
    folder = make_model(tmp_path, name, **overrides)
    whole = load_model(folder, load_format="dummy")
    small = load_model(folder, load_format="dummy", quantization="int8")
    of_experts = [sum(experts.num_bytes for experts in model.expert_layers()) for model in (whole, small)]
    numbers = sum(4 * stack.shape[0] * stack.shape[1] for e in whole.expert_layers() for stack in (e.gate_up, e.down))
    assert of_experts[0] == numbers
    assert numbers / 4 < of_experts[1] < numbers / 3
    assert whole.num_bytes - small.num_bytes > numbers - of_experts[1]
    (told,) = {experts.backend.stored for experts in small.expert_layers() if experts.backend is not None}
    assert told == "int8 x int8"
    assert _context_cost(small) == _context_cost(whole) > 1  # operations are as many


def test_a_missing_expert(tmp_path: Path) -> None:
    packed, _ = make_pair(tmp_path, *CASES["fp8-blocks"], "qwen3_moe", **SMALL)
    given = load_file(packed / SINGLE)
    save_file({path: tensor for path, tensor in given.items() if ".experts.1.up_proj" not in path}, packed / SINGLE)
    with pytest.raises(ModelError, match=r"experts\.\d+\.(gate|up)_proj.* missing"):
        load_model(packed)


def test_experts_that_differ() -> None:
    """Measured scales of activations may; other differences make a layer plain."""
    weights = [torch.randn(4, 64, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    schemes = [to_fp8(weight) for weight in weights]
    exact = torch.cat([scheme.dequantize(torch.float32) for scheme in schemes])
    measured = [Float8(s.code_NK, s.scale_NG, torch.tensor(0.1 * (i + 1))) for i, s in enumerate(schemes)]
    for parts, kind in ((schemes, Float8), (measured, Float8), ((schemes[0], Plain(exact[4:])), Plain)):
        stack = Stack(64, 8, False, torch.float32, CPU)
        stack.defer()
        for row, part in zip((4, 0), parts[::-1], strict=True):
            stack.put(row, part)
        found = stack.scheme()
        assert isinstance(found, kind)
        assert torch.equal(found.dequantize(torch.float32), exact)
        if isinstance(found, Float8):
            assert found.input_scale is None and found.dynamic == (parts is schemes)
    assert to_int8(weights[0]).dynamic
