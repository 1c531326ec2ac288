"""Products with quantised weights against their dequantised matrices: in the interpreter, or on a GPU."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from octavo import kernels
from octavo.kernels.quant_linear import Form, choose, quant_linear
from octavo.quant.methods import Codes, ScaledProduct, select_method
from octavo.quant.pack import to_fp8, to_int4, to_int8
from octavo.quant.schemes import Float8, Integers, Scheme, Table

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def made(kind: str, rows: int, columns: int) -> Scheme:
    weight = draw(rows, columns, seed=1)
    if kind == "int8 groups":
        whole = to_int8(weight)
        scale = whole.scale_NG.expand(rows, columns // 32) * (1 + draw(rows, columns // 32, seed=2).abs())
        return Integers(whole.code_NP, scale.contiguous(), draw(rows, columns // 32, seed=3))
    return {
        "int4": lambda w: to_int4(w, 32),
        "int4 wide": lambda w: to_int4(w, columns),
        "int8": to_int8,
        "fp8": to_fp8,
    }[kind](weight)


def product(x: torch.Tensor, scheme: Scheme, form: Form | None = None) -> torch.Tensor:
    if isinstance(scheme, Float8):
        return quant_linear(x, scheme.code_NK, scheme.scale_NG, None, False, form)
    assert isinstance(scheme, Integers)
    return quant_linear(x, scheme.code_NP, scheme.scale_NG, scheme.offset_NG, scheme.bits == 4, form)


def error(got: torch.Tensor, x: torch.Tensor, scheme: Scheme) -> float:
    wanted = x.double() @ scheme.dequantize(torch.float64).T
    return ((got.double() - wanted).norm() / wanted.norm()).item()


KINDS = ["int4", "int4 wide", "int8", "int8 groups", "fp8"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [1, 5, 70])
def test_equals_the_dequantised_product(kind: str, inputs: int) -> None:
    scheme, x = made(kind, 80, 96), draw(inputs, 96)
    assert error(product(x, scheme), x, scheme) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("splits", [2, 4])
def test_split(kind: str, splits: int) -> None:
    """Steps that do not divide evenly, and splits that have nothing to do."""
    scheme, x = made(kind, 33, 160), draw(3, 160)
    assert error(product(x, scheme, Form(64, 16, 32, splits, 4, 2)), x, scheme) < 1e-5


def test_half_precision_and_strides() -> None:
    scheme = made("int4", 64, 64)
    x = draw(4, 128, dtype=torch.float16)[:, :64]
    got = product(x, scheme)
    assert got.dtype == torch.float16
    assert error(got, x, scheme) < 2e-3


@pytest.mark.parametrize("spoil", ["scale", "offset", "code", "halves"])
def test_planted_errors_are_seen(spoil: str) -> None:
    scheme, x = made("int4", 32, 64), draw(2, 64)
    assert isinstance(scheme, Integers) and scheme.offset_NG is not None
    wrong = {
        "scale": dataclasses.replace(scheme, scale_NG=scheme.scale_NG.roll(1, 1)),
        "offset": dataclasses.replace(scheme, offset_NG=scheme.offset_NG.roll(1, 0)),
        "code": dataclasses.replace(scheme, code_NP=scheme.code_NP.roll(1, 1)),
        "halves": dataclasses.replace(scheme, code_NP=(scheme.code_NP >> 4) | (scheme.code_NP << 4)),
    }[spoil]
    assert error(product(x, wrong), x, scheme) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_the_method_of_linear_layers(kind: str) -> None:
    scheme, x = made(kind, 48, 64), draw(3, 64)
    if isinstance(scheme, Integers):
        scheme = dataclasses.replace(scheme, order_K=torch.randperm(64).to(DEVICE))
    method = Codes(scheme, x.dtype)
    assert error(method(x), x, scheme) < 1e-5
    assert method.nbytes == scheme.nbytes


def test_few_rows_of_float8_are_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    scheme, x = to_fp8(draw(48, 64)), draw(3, 64)
    monkeypatch.setattr(Codes, "supports", lambda *asked: None)
    product = ScaledProduct(scheme, x.dtype)
    assert error(product(x), x, scheme) < 1e-5
    assert product.few is not None and product.few.weights[0] is scheme.code_NK  # the codes are there once


def test_why_not() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    weight = torch.randn(16, 48)
    assert "GPU" in str(Codes.supports(to_int8(weight), torch.bfloat16, cpu))
    table = Table(torch.zeros(4, 8, dtype=torch.uint8), torch.ones(4, 1), torch.zeros(16))
    assert "neither" in str(Codes.supports(table, torch.bfloat16, gpu))
    if DEVICE == "cuda":
        narrow = Integers(to_int8(weight).code_NP, torch.ones(16, 6))
        assert "groups of 8" in str(Codes.supports(narrow, torch.bfloat16, gpu))
        assert select_method(to_int8(weight), torch.bfloat16, gpu)[0] is Codes


@pytest.mark.parametrize(("kind", "group", "reason"), [("int4", 16, "32"), ("int4", 32, ""), ("int8", 16, "")])
def test_halves_of_a_group_fill_a_product(monkeypatch: pytest.MonkeyPatch, kind: str, group: int, reason: str) -> None:
    """The interpreter multiplies any size; a GPU's compiler wants 16 columns, which are 32 of two codes a byte."""
    monkeypatch.setattr(kernels, "elementwise_for", lambda device: kernels)
    scheme = to_int4(draw(16, 96), group) if kind == "int4" else made(kind, 16, 96)
    if kind == "int8":
        scheme = dataclasses.replace(scheme, scale_NG=torch.ones(16, 96 // group))
    why = Codes.supports(scheme, torch.bfloat16, torch.device("cuda"))
    assert (reason in str(why)) if reason else why is None


def test_forms() -> None:
    assert choose(1, 4096, 4096, 128, 132).splits > 1
    assert choose(1, 28672, 4096, 4096, 132).splits == 1
    assert choose(4096, 4096, 4096, 128, 132) == Form(128, 128, 64, 1, 8, 3)
    assert choose(1, 64, 96, 32, 1).columns == 32


def test_kernels_compile_for_every_target(tmp_path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    code = "from tests.kernels.test_quant_linear import compile_all; compile_all()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 19


def compile_all() -> None:
    from octavo.kernels.quant_linear import quant_linear_kernel
    from tests.kernels import compile_all as targets

    few = {"ROWS": 64, "INPUTS": 16, "COLUMNS": 128}
    many = {"ROWS": 128, "INPUTS": 128, "COLUMNS": 64}
    types = {"code_ptr": "*u8", "scale_ptr": "*fp32", "offset_ptr": "*fp32"}
    for halves, code, where in (
        (True, "*u8", targets.TARGETS),
        (False, "*i8", targets.NVIDIA),
        (False, "*fp8e4nv", targets.NVIDIA[1:]),
    ):
        targets.TYPES.update(types | {"code_ptr": code})
        for shape, warps, stages in ((few, 4, 4), (many, 8, 3)):
            for target in where if halves or shape is few or code == "*i8" else where[:1]:
                stages = 1 if target.backend == "hip" else stages
                constants = shape | {"HALVES": halves, "OFFSET": halves}
                targets.build(
                    targets.ASTSource, quant_linear_kernel, constants, target, num_warps=warps, num_stages=stages,
                    enable_fp_fusion=True,
                )  # fmt: skip
