"""Rounding to grids, and GPTQ: what it must never be worse than, and what it is without correlations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.quant.compressed import CompressedTensors
from octavo.quant.formats import Options
from octavo.quantize.gptq import gptq, inverse_factor
from octavo.quantize.layout import stored
from octavo.quantize.recipe import SCHEMES, Recipe
from octavo.quantize.rounding import Grid

GRIDS = {
    "int4": Grid(4, group=32),
    "int4-asymmetric": Grid(4, group=32, symmetric=False),
    "int8": Grid(8),
    "int8-asymmetric": Grid(8, symmetric=False),
    "fp8-row": Grid(8, floating=True),
    "fp8-matrix": Grid(8, floating=True, group=0),
}


@pytest.mark.parametrize("name", GRIDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), spread=st.sampled_from([1e-6, 0.02, 30.0]), shift=st.sampled_from([0.0, 2.0]))
def test_values_that_are_not_cut_off_are_near(name: str, seed: int, spread: float, shift: float) -> None:
    grid = GRIDS[name]
    weight_NK = (torch.randn(6, 64, generator=torch.Generator().manual_seed(seed)) + shift) * spread
    rounded = grid.round(weight_NK, torch.bfloat16)
    scale_NG = rounded.steps.scale_NG
    assert torch.equal(scale_NG, scale_NG.bfloat16().float())
    found_NK = rounded.dequantize()
    if grid.floating:
        assert ((found_NK - weight_NK).abs() <= weight_NK.abs() / 16 + scale_NG.repeat_interleave(64, 1) / 256).all()
        return
    code_NK = rounded.code_NK.float()
    step_NK = scale_NG.repeat_interleave(64 // scale_NG.shape[1], 1)
    inside_NK = (code_NK > grid.low) & (code_NK < grid.high)
    assert ((found_NK - weight_NK).abs() <= step_NK * 0.5001)[inside_NK].all()
    assert ((found_NK - weight_NK).abs() <= step_NK * 2).all()


def test_a_matrix_of_zeros() -> None:
    for grid in GRIDS.values():
        assert not grid.round(torch.zeros(2, 32), torch.float16).dequantize().any()


def test_values_of_the_grid_stay() -> None:
    weight_NK = torch.randint(-8, 8, (4, 64), generator=torch.Generator().manual_seed(0)) * 0.125
    weight_NK[:, ::32], weight_NK[:, 1::32] = -8 * 0.125, 7 * 0.125
    assert torch.equal(Grid(4, group=32, symmetric=False).round(weight_NK, torch.bfloat16).dequantize(), weight_NK)


def inputs(columns: int) -> torch.Tensor:
    """[T, K], correlated, some columns much larger than others, one always zero."""
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(512, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    mixed[:, ::7] *= 8
    mixed[:, 5] = 0
    return mixed


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("name", ["int4", "int4-asymmetric", "int8"])
def test_gptq_loses_less(name: str, act_order: bool) -> None:
    grid, x_TK = GRIDS[name], inputs(160)
    weight_NK = torch.randn(24, 160, generator=torch.Generator().manual_seed(2)) * 0.05
    nearest = grid.round(weight_NK, torch.float32)
    found = gptq(weight_NK, x_TK.t() @ x_TK, grid, torch.float32, 0.01, act_order)
    lost = [((r.dequantize() - weight_NK) @ x_TK.t()).square().sum().item() for r in (found, nearest)]
    assert lost[0] < 0.6 * lost[1]
    assert found.steps.scale_NG.shape == nearest.steps.scale_NG.shape
    assert found.code_NK.min() >= grid.low and found.code_NK.max() <= grid.high


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_without_correlations_rounds_to_nearest(act_order: bool) -> None:
    weight_NK = torch.randn(8, 96, generator=torch.Generator().manual_seed(3))
    grid = Grid(4, group=32)
    found = gptq(weight_NK, torch.diag(torch.linspace(1, 2, 96)), grid, torch.float32, 0.01, act_order)
    nearest = grid.round(weight_NK, torch.float32)
    assert torch.equal(found.code_NK, nearest.code_NK)
    torch.testing.assert_close(found.steps.scale_NG, nearest.steps.scale_NG)


def test_gptq_of_few_inputs() -> None:
    """H has a rank of 3, and its factor exists all the same."""
    x_TK = inputs(64)[:3]
    factor_KK = inverse_factor(x_TK.t() @ x_TK, 0.01)
    assert torch.isfinite(factor_KK).all() and torch.equal(factor_KK, factor_KK.triu())
    assert torch.isfinite(inverse_factor(torch.zeros(8, 8), 0.01)).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", SCHEMES)
def test_layout_is_what_the_reader_reads(name: str, symmetric: bool) -> None:
    scheme = SCHEMES[name]
    if not symmetric and scheme.layout != "pack-quantized":
        pytest.skip("this layout has no zero points")
    recipe = Recipe(scheme, group_size=32, symmetric=symmetric)
    weight_NK = torch.randn(20, 96, generator=torch.Generator().manual_seed(4))
    rounded = recipe.grid.round(weight_NK, torch.bfloat16)
    scale = torch.tensor(0.5) if recipe.static else None
    tensors = stored(scheme, rounded, torch.bfloat16, scale)
    read = CompressedTensors(Options(recipe.config(["lm_head"]))).read("layer", tensors, (20, 96))
    torch.testing.assert_close(read.dequantize(torch.float32), rounded.dequantize(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", SCHEMES)
def test_layout_is_what_the_package_reads(name: str, symmetric: bool) -> None:
    """compressed-tensors' own decompression, of the config that we write. In version 0.20 transformers cannot load
    packed zero points; the package can."""
    pytest.importorskip("compressed_tensors", reason="needs the package compressed-tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    scheme = SCHEMES[name]
    recipe = Recipe(scheme, group_size=32, symmetric=symmetric or scheme.layout != "pack-quantized")
    weight_NK = torch.randn(20, 96, generator=torch.Generator().manual_seed(5))
    rounded = recipe.grid.round(weight_NK, torch.float32)
    tensors = stored(scheme, rounded, torch.float32, None)
    config = QuantizationConfig.model_validate(recipe.config(["lm_head"]))
    group = config.config_groups["group_0"]
    found = BaseCompressor.load_from_registry(scheme.layout).decompress(tensors, group)["weight"]
    torch.testing.assert_close(found.float(), rounded.dequantize(), atol=1e-6, rtol=1e-5)
