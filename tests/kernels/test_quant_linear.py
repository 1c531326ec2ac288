"""Products with quantised weights against their dequantised matrices: in the interpreter, or on a GPU."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from octavo import kernels
from octavo.kernels.codes import CodeMatrix
from octavo.kernels.quant_linear import Form, choose, decode, quant_linear
from octavo.quant.methods import MANY_ROWS, Codes, Int8Product, ScaledProduct, select_method
from octavo.quant.pack import to_fp8, to_int4, to_int8
from octavo.quant.schemes import Float8, Integers, Scheme, Table, unrounded

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


def matrix(scheme: Scheme) -> CodeMatrix:
    if isinstance(scheme, Float8):
        return CodeMatrix.of(scheme.code_NK, scheme.scale_NG, None)
    assert isinstance(scheme, Integers)
    return CodeMatrix.of(scheme.code_NP, scheme.scale_NG, scheme.offset_NG)


def product(x: torch.Tensor, scheme: Scheme, form: Form | None = None) -> torch.Tensor:
    return quant_linear(x, matrix(scheme), form)


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
    assert method.nbytes <= scheme.nbytes


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter rounds to float8 in its own way")
def test_float8_is_rounded_once_for_few_rows_and_for_many() -> None:
    scheme = to_fp8(draw(64, 128))
    product = ScaledProduct(scheme, torch.bfloat16)
    x = draw(300, 128, dtype=torch.bfloat16)
    assert product.few.form(3, product.rounded) is not None and product.few.form(300, product.rounded) is None
    assert error(product(x), x, scheme) < 0.04
    torch.testing.assert_close(product(x[:3]), product(x)[:3], rtol=0.02, atol=0.02)


def test_why_not() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    weight = torch.randn(16, 48)
    assert "GPU" in str(Codes.supports(to_int8(weight), torch.bfloat16, cpu))
    table = Table(torch.zeros(4, 8, dtype=torch.uint8), torch.ones(4, 1), torch.zeros(16))
    assert "neither" in str(Codes.supports(table, torch.bfloat16, gpu))
    if DEVICE == "cuda":
        narrow = Integers(to_int8(weight).code_NP, torch.ones(16, 6))
        assert "groups of 8" in str(Codes.supports(narrow, torch.bfloat16, gpu))
        assert select_method(unrounded(to_int8(weight)), torch.bfloat16, gpu)[0] is Codes
        assert select_method(to_int8(weight), torch.bfloat16, gpu)[0] is Int8Product


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
    def form(inputs: int, rows: int, columns: int, group: int, processors: int = 132) -> Form:
        code = torch.empty(rows, columns, dtype=torch.int8, device="meta")
        return choose(inputs, CodeMatrix("int8", code, torch.empty(columns // group, rows), None, 0), processors)

    assert form(1, 4096, 4096, 128).splits > 1
    assert form(1, 28672, 4096, 4096).splits == 1
    assert form(4096, 4096, 4096, 128) == Form(128, 128, 64, 1, 8, 3)
    assert form(1, 64, 96, 32, 1).columns == 32


@pytest.mark.parametrize("kind", KINDS)
def test_decode(kind: str) -> None:
    scheme = made(kind, 37, 192)
    got = decode(matrix(scheme), torch.float32)
    torch.testing.assert_close(got, scheme.dequantize(torch.float32), rtol=1e-5, atol=1e-5)
    assert decode(matrix(scheme), torch.float16).dtype == torch.float16
    wrong = matrix(dataclasses.replace(scheme, scale_NG=scheme.scale_NG.roll(1, 0)))
    assert not torch.allclose(decode(wrong, torch.float32), got)


def test_many_rows_are_multiplied_by_the_decoded_matrix() -> None:
    scheme, x = made("int4", 48, 64), draw(MANY_ROWS + 1, 64)
    assert error(Codes(scheme, x.dtype)(x), x, scheme) < 1e-5


def test_kernels_compile_for_every_target(tmp_path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    code = "from tests.kernels.test_quant_linear import compile_all; compile_all()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 56


def compile_all() -> None:
    from octavo.kernels import elementwise, quant_linear, row_codes, skinny_codes
    from tests.kernels import compile_all as targets

    few = {"ROWS": 64, "INPUTS": 16, "COLUMNS": 128}
    many = {"ROWS": 128, "INPUTS": 128, "COLUMNS": 128}
    tile = {"K": 2048, "M_P2": 16, "PARTS": 2, "R": 64, "BLOCK": 128, "UNROLL": 1, "SPLITS": 2, "STAGES": 3, "EARLY": 2}
    rounds = {"PAIR": True, "STATIC": False, "GROUP": 0, "SUMMED": 0, "SIZE_P2": 4096, "ACTIVATION": "silu"}
    types = {
        "scale_ptr": "*fp32",
        "x_scale_ptr": "*fp32",
        "partial_ptr": "*fp32",
        "arrived_ptr": "*i32",
        "sum_ptr": "*fp32",
        "about_ptr": "*fp32",
    }
    for kind, code, where in (
        ("int4", "*u8", targets.TARGETS),
        ("int8", "*i8", targets.NVIDIA[1:2]),
        ("fp8", "*fp8e4nv", targets.NVIDIA[1:]),
    ):
        targets.TYPES.update(types | {"code_ptr": code, "offset_ptr": "*i8" if kind == "int4" else "*fp32"})
        halves = {"HALVES": kind == "int4", "OFFSET": kind == "int4"}
        rounded = {"code_ptr": "*fp8e4nv" if kind == "fp8" else "*i8", "x_ptr": "*bf16"}
        codes = halves | {"GROUPS": 16 if kind == "int4" else 1} | ({"about_ptr": None} if kind == "int8" else {})
        for target in where:
            amd = target.backend == "hip"
            chained = target in targets.NVIDIA[1:]
            kernels = [
                (quant_linear.quant_linear_kernel, few | halves, 4, 1 if amd else 4),
                (quant_linear.quant_linear_kernel, many | halves, 8, 1 if amd else 3),
                (quant_linear.decode_kernel, halves | {"MXFP4": False, "ROWS": 32, "COLUMNS": 128}, 4, 1),
                (skinny_codes.tiles_kernel, tile | codes | {"PTX": not amd}, 4, 1),
                (row_codes.round_rows_kernel, rounds | {"INTEGER": kind != "fp8", "SUMMED": 128}, 8, 1),
                (elementwise.gate_codes_kernel, rounds | {"INTEGER": kind != "fp8"}, 8, 1),
                (elementwise.gate_codes_kernel, rounds | {"INTEGER": kind != "fp8", "PAIR": False, "GROUP": 128}, 8, 1),
            ]
            for kernel, constants, warps, stages in kernels:
                flags = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
                if kernel is skinny_codes.tiles_kernel:
                    targets.TYPES.update(code_ptr=code, x_ptr=rounded["code_ptr"])
                else:
                    targets.TYPES.update(
                        rounded
                        if kernel.arg_names[1] == "code_ptr" and "INTEGER" in kernel.arg_names
                        else {"code_ptr": code, "x_ptr": "*bf16"}
                    )
                if "CHAINED" in kernel.arg_names:
                    constants = constants | {"CHAINED": chained}
                    flags |= {"launch_pdl": True} if chained else {}
                given = {name: value for name, value in constants.items() if name in kernel.arg_names}
                targets.build(targets.ASTSource, kernel, given, target, **flags)
