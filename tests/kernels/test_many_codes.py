"""Products of many rows in codes: our kernel and what torch is asked for, in the interpreter, or on a GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from bench.quant_linear import fp8_blocks
from octavo import kernels
from octavo.kernels.codes import CodeMatrix, Rounding, RowCodes
from octavo.kernels.many_codes import FORMS, Form, choose, many_codes
from octavo.kernels.row_codes import round_rows
from octavo.quant import methods
from octavo.quant.methods import Int8Product, ScaledBlocks
from octavo.quant.pack import to_fp8, to_int8
from octavo.quant.schemes import Integers, unrounded

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = Form(32, 32, 64, 4, 2)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def pair(rows: int, outputs: int, columns: int) -> tuple[RowCodes, CodeMatrix]:
    x = round_rows(draw(rows, columns) * (1 + draw(rows, 1, seed=1).abs()), Rounding("int8"))
    scheme = to_int8(draw(outputs, columns, seed=2) * (1 + draw(outputs, 1, seed=3).abs()))
    return x, CodeMatrix.of(scheme.code_NP, scheme.scale_NG, None)


def check(got: torch.Tensor, x: RowCodes, codes: CodeMatrix) -> None:
    wanted = x.dequantize().double() @ codes.dequantize().double().T
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize(("rows", "outputs", "columns"), [(33, 80, 144), (300, 48, 64), (1, 32, 128)])
def test_tiles_that_are_filled_in_part(rows: int, outputs: int, columns: int) -> None:
    """More bands than one, the last lower; columns that no block divides."""
    x, codes = pair(rows, outputs, columns)
    check(many_codes(x, codes, form=SMALL), x, codes)


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: Form) -> None:
    x, codes = pair(130, 272, 256)
    check(many_codes(x, codes, form=form), x, codes)


@pytest.mark.parametrize("spoil", ["code", "row", "scale", "x_scale"])
def test_planted_errors_are_seen(spoil: str) -> None:
    x, codes = pair(40, 48, 128)
    got = many_codes(x, codes, form=SMALL)
    if spoil == "code":
        codes.code_NP[5, 77] ^= 16
    elif spoil == "row":
        x.code_MPE[39] = x.code_MPE[38]
    elif spoil == "scale":
        codes.scale_GN[0, 47] *= 1.01
    else:
        x.scale_M[39] *= 1.01
    with pytest.raises(AssertionError):
        check(got, x, codes)


def test_which_form() -> None:
    assert choose(8192, 28672, 132).outputs == 256
    assert choose(256, 6144, 132).outputs == 128  # 96 programs; 48 would leave most of the GPU idle
    assert choose(256, 4096, 132).outputs == 64
    for form in FORMS:  # what a program has
        assert form.stages * form.block * (form.rows + form.outputs) <= methods.SHARED_BYTES


@pytest.mark.parametrize("measured", [None, 0.02])
def test_the_method_of_linear_layers(measured: float | None) -> None:
    scheme = to_int8(draw(64, 128))
    if measured is not None:
        scheme = dataclasses.replace(scheme, input_scale=torch.tensor([measured], device=DEVICE), dynamic=False)
    product, x = Int8Product(scheme, torch.float32), draw(300, 128, seed=1)
    check(product(x), round_rows(x, product.rounded), product.codes)
    few = product(x[:3])
    torch.testing.assert_close(few, product(x)[:3], rtol=1e-4, atol=1e-4)


def test_who_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "elementwise_for", lambda device: kernels)
    monkeypatch.setattr(methods, "_roomy", lambda device: True)
    gpu, scheme = torch.device("cuda"), to_int8(draw(32, 64))
    assert Int8Product.supports(scheme, torch.bfloat16, gpu) is None
    for wrong, reason in (
        (unrounded(scheme), "not to be rounded"),
        (dataclasses.replace(scheme, offset_NG=scheme.scale_NG), "zero points"),
        (Integers(scheme.code_NP, scheme.scale_NG.expand(-1, 2), dynamic=True), "scale a row"),
        (to_int8(draw(32, 72)), "multiples of 16"),
    ):
        assert reason in str(Int8Product.supports(wrong, torch.bfloat16, gpu))
    monkeypatch.setattr(methods, "_roomy", lambda device: False)
    assert "shared memory" in str(Int8Product.supports(scheme, torch.bfloat16, gpu))


def scaled_mm(code_MK, code_KN, scale_MG, of_x, scale_GB, of_weight, output_dtype):
    """What torch's does on Hopper, and what it asks for."""
    (rows, columns), outputs = code_MK.shape, code_KN.shape[1]
    groups = columns // 128
    assert (of_x, of_weight) == (F.ScalingType.BlockWise1x128, F.ScalingType.BlockWise128x128)
    assert rows % 4 == 0 and code_MK.is_contiguous() and code_KN.t().is_contiguous()
    assert scale_MG.shape == (rows, groups) and scale_MG.stride() == (1, rows)
    held = -(-groups // 4) * 4
    assert scale_GB.shape == (held, outputs // 128) and scale_GB.stride() == (1, held)
    x = code_MK.float() * scale_MG.repeat_interleave(128, 1)
    weight_KN = code_KN.float() * scale_GB[:groups].repeat_interleave(128, 0).repeat_interleave(128, 1)
    return (x @ weight_KN).to(output_dtype)


@pytest.mark.parametrize("rows", [20, 65, 130])
def test_float8_in_blocks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = fp8_blocks(draw(256, 640) * 2.0 ** draw(2, 5, seed=1).repeat_interleave(128, 0).repeat_interleave(128, 1))
    if DEVICE.type == "cpu":
        monkeypatch.setattr(F, "scaled_mm", scaled_mm)
    elif (reason := ScaledBlocks.supports(scheme, torch.bfloat16, DEVICE)) is not None:
        pytest.skip(reason)
    product = ScaledBlocks(scheme, torch.bfloat16)
    x = draw(rows, 640, seed=2).to(torch.bfloat16)  # up to 64 on a GPU through the kernel for few rows
    wanted = round_rows(x, product.rounded).dequantize() @ scheme.dequantize(torch.float32).T
    torch.testing.assert_close(product(x).float(), wanted, rtol=2**-7, atol=2**-7 * wanted.abs().max().item())
    (product.scale_GB[4, 1] if rows > 64 or DEVICE.type == "cpu" else product.codes.scale_GN[4, 128:]).mul_(1.5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(product(x).float(), wanted, rtol=2**-7, atol=2**-7 * wanted.abs().max().item())


def test_which_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "elementwise_for", lambda device: kernels)
    monkeypatch.setattr(methods, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(methods, "_cuda", lambda: (13, 0))
    scheme, gpu = fp8_blocks(draw(256, 256)), torch.device("cuda")
    assert ScaledBlocks.supports(scheme, torch.bfloat16, gpu) is None
    differs = scheme.scale_NG.clone()
    differs[200] *= 2
    for wrong, reason in (
        (unrounded(scheme), "not to be rounded"),
        (dataclasses.replace(scheme, scale_NG=differs), "differ within"),
        (to_fp8(draw(256, 256)), "in blocks"),
        (scheme.map_rows(lambda rows: rows[:64]), "in blocks"),
    ):
        assert reason in str(ScaledBlocks.supports(wrong, torch.bfloat16, gpu))
    monkeypatch.setattr(methods, "_cuda", lambda: (12, 8))
    assert "12.9" in str(ScaledBlocks.supports(scheme, torch.bfloat16, gpu))
