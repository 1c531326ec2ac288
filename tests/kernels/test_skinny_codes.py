"""Rounding of rows, and products of few of them with quantised weights, against torch."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch.nn import functional as F

from octavo.kernels import elementwise
from octavo.kernels.codes import CodeMatrix, Rounding, RowCodes
from octavo.kernels.row_codes import round_rows
from octavo.kernels.skinny_codes import Form, choose, choose_for_floats, skinny_codes
from octavo.quant.schemes import pack_halves

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WHOLE = Form(tokens=32, rows=16, block=128, unroll=1, splits=1, stages=2, early=1, warps=1)
SPLIT = Form(tokens=32, rows=16, block=128, unroll=1, splits=2, stages=2, warps=1)
ROUNDINGS = [Rounding(kind, pair) for kind in ("fp8", "int8") for pair in (False, True)]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def reference(x: torch.Tensor, rounding: Rounding) -> RowCodes:
    if rounding.group:
        of = reference(x.reshape(-1, rounding.group), dataclasses.replace(rounding, group=0))
        return RowCodes(of.kind, of.code_MPE.view(len(x), 1, -1), of.scale_M.view(len(x), -1).t(), x.dtype)
    largest, finer, kind = {"fp8": (448, 16, torch.float8_e4m3fn), "int8": (127, 256, torch.int8)}[rounding.kind]
    scale = (
        x.float().abs().amax(1).clamp(min=1e-12) / largest if rounding.scale is None else rounding.scale.expand(len(x))
    )
    value = (x.float() / scale[:, None]).clamp(-largest, largest)
    whole = kind == torch.int8
    first = (value.add(0.5).floor() if whole else value).to(kind)
    rest = (value - first.float()) * finer
    second = (rest.add(0.5).floor().clamp(-128, 127) if whole else rest).to(kind)
    code_MPE = torch.stack((first, second)[: rounding.parts], 1)
    blocks = code_MPE.float().unflatten(2, (-1, rounding.summed)).sum(-1) if rounding.summed else None
    return RowCodes(
        rounding.kind, code_MPE, scale, x.dtype, None if blocks is None else blocks.permute(2, 0, 1).contiguous()
    )


def rows(count: int, columns: int, kind: str, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """Random ones; in the interpreter such as float8 holds exactly, for it rounds 1.97 to 1."""
    x = draw(count, columns, seed=count, dtype=dtype)
    if kind == "fp8" and DEVICE.type == "cpu":
        x = (100 * x).clamp(-448, 448).to(torch.float8_e4m3fn).to(dtype)
        x[:, 0] = 448
    return x


def same(codes: RowCodes, wanted: RowCodes) -> None:
    assert codes.code_MPE.dtype == wanted.code_MPE.dtype and codes.dtype == wanted.dtype
    torch.testing.assert_close(codes.scale_M, wanted.scale_M, rtol=1e-6, atol=0)
    # A quotient that lies between two codes may fall to either.
    step = (
        wanted.scale_M.max().item() * {"fp8": 32, "int8": 1}[codes.kind] / (1 if codes.code_MPE.shape[1] == 1 else 16)
    )
    apart = (codes.dequantize() - wanted.dequantize()).abs()
    assert apart.max() <= 1.01 * step and (apart > 1e-3 * step).float().mean() < 0.02
    assert (codes.sum_BMP is None) == (wanted.sum_BMP is None)
    if codes.sum_BMP is not None:
        blocks = codes.code_MPE.float().unflatten(2, (len(codes.sum_BMP), -1)).sum(-1)
        assert torch.equal(codes.sum_BMP, blocks.permute(2, 0, 1))


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=str)
def test_round_rows(rounding: Rounding) -> None:
    x = rows(3, 100, rounding.kind)[:, :90]
    same(round_rows(x, rounding), reference(x, rounding))
    zeros = round_rows(torch.zeros_like(x), rounding)
    assert not zeros.dequantize().any()


@pytest.mark.parametrize("kind", ["fp8", "int8"])
@pytest.mark.parametrize(("count", "columns"), [(1, 128), (3, 384), (8, 256)])
def test_a_scale_for_each_group(kind: str, count: int, columns: int) -> None:
    x = rows(count, columns, kind, torch.float32).view(-1, 128)
    x[:, 0] = 448 if kind == "fp8" else 4
    x *= 2.0 ** torch.randint(-3, 3, (len(x), 1), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    x = x.view(count, columns)
    wanted, got = reference(x, Rounding(kind, group=128)), round_rows(x, Rounding(kind, group=128))
    same(got, wanted)
    code_ME, scale_MG = got.held()
    assert len(got) == count and len(code_ME) == len(scale_MG) == -(-count // 4) * 4
    assert scale_MG.stride() == (1, len(scale_MG))
    assert torch.equal(scale_MG[:count].t(), got.scale_M)
    assert torch.equal(code_ME[:count].float(), got.code_MPE[:, 0].float())
    with pytest.raises(AssertionError):
        same(got, dataclasses.replace(wanted, scale_M=wanted.scale_M * 1.01))


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_wrong_rounding_is_seen(kind: str) -> None:
    x = draw(3, 90)
    right = reference(x, Rounding(kind))
    for code, scale in (
        (reference(x.flip(1), Rounding(kind)).code_MPE, right.scale_M),
        (right.code_MPE, right.scale_M * 1.01),
    ):
        with pytest.raises(AssertionError):
            same(RowCodes(kind, code, scale, right.dtype), right)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_pair_keeps_what_the_first_loses(kind: str) -> None:
    x = draw(4, 128)
    lost = [(reference(x, Rounding(kind, pair)).dequantize() - x).norm() / x.norm() for pair in (False, True)]
    assert lost[1] < lost[0] / 12 and lost[1] < 2**-9


def test_a_static_scale_is_kept_and_too_much_is_cut_off() -> None:
    x = torch.tensor([[0.5, -1.0, 3.0, 1000.0], [0, 0, 0, 0]], device=DEVICE)
    codes = round_rows(x, Rounding("int8", scale=torch.tensor([0.5], device=DEVICE)))
    assert codes.code_MPE[:, 0].tolist() == [[1, -2, 6, 127], [0, 0, 0, 0]]
    assert codes.scale_M.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "rounding", [*ROUNDINGS[2:], Rounding("int8", group=32), Rounding("int8", True, summed=32)], ids=str
)
def test_a_norm_or_a_gate_that_rounds(rounding: Rounding) -> None:
    x, residual, weight = draw(3, 96), draw(3, 96, seed=1), draw(96, seed=2)
    wanted, stream = elementwise.add_rms_norm(x, residual.clone(), weight, 1e-5, 0.5, True)
    codes, grown = elementwise.add_rms_norm_codes(x, residual, weight, 1e-5, 0.5, True, rounding)
    torch.testing.assert_close(grown, stream)
    same(codes, reference(wanted, rounding))
    pair = draw(3, 192, seed=3)
    same(elementwise.gate_codes(pair, "silu", rounding), reference(elementwise.gate(pair, "silu"), rounding))


def make(kind: str, rows: int, columns: int, groups: int, offset: str) -> CodeMatrix:
    generator = torch.Generator().manual_seed(rows + columns)
    if kind == "int4":
        code = pack_halves(torch.randint(16, (rows, columns), generator=generator, dtype=torch.uint8))
    elif kind == "int8":
        code = torch.randint(-128, 128, (rows, columns), generator=generator, dtype=torch.int8)
    else:
        code = (100 * torch.randn(rows, columns, generator=generator)).to(torch.float8_e4m3fn)
        code[0, :8] = torch.tensor([448.0, -448, 2**-9, -(2**-9), 2**-6, 0, -0.0, 1]).to(code.dtype)
    scale = (0.5 + torch.rand(rows, groups, generator=generator)) / (8 if kind == "int4" else 100)
    shift = {
        "middle": -8 * scale if kind == "int4" else None,
        "zeros": -scale * torch.randint(16, scale.shape, generator=generator),
        "free": torch.rand(rows, groups, generator=generator),
    }[offset]
    codes = CodeMatrix.of(code.to(DEVICE), scale.to(DEVICE), None if shift is None else shift.to(DEVICE))
    kept = None if codes.offset_GN is None else codes.offset_GN.dtype
    assert kept == {"middle": None, "zeros": torch.int8, "free": torch.float32}[offset]
    return codes


def check(codes: CodeMatrix, m: int, form: Form, pair: bool = True, dtype=torch.float16, spoil=None) -> None:
    rounding = Rounding("fp8" if codes.kind == "fp8" else "int8", pair, summed=codes.summed)
    x = reference(draw(m, codes.shape[1], seed=m, dtype=dtype) / 4, rounding)
    wanted = F.linear(x.dequantize(), codes.dequantize())
    if spoil is not None:
        spoil(codes)
    got = skinny_codes(x, codes, form=form)
    assert got.dtype == dtype
    step = 2**-7 if dtype == torch.bfloat16 else 2**-10
    torch.testing.assert_close(got.float(), wanted, rtol=2 * step, atol=wanted.abs().max().item() * step)


CASES = [
    ("fp8", 1, "middle"),
    ("fp8", 2, "middle"),
    ("int8", 1, "middle"),
    ("int8", 2, "free"),
    ("int4", 2, "middle"),
    ("int4", 2, "zeros"),
    ("int4", 2, "free"),
    ("int4", 1, "middle"),
]


@pytest.mark.parametrize(("kind", "groups", "offset"), CASES)
@pytest.mark.parametrize(("m", "form", "pair"), [(1, WHOLE, True), (3, SPLIT, False), (17, SPLIT, True)])
def test_skinny_codes(kind: str, groups: int, offset: str, m: int, form: Form, pair: bool) -> None:
    check(make(kind, 32, 256, groups, offset), m, form, pair)


@pytest.mark.parametrize(("kind", "groups"), [("fp8", 2), ("int8", 1), ("int4", 2)])
@pytest.mark.parametrize(("m", "form"), [(1, WHOLE), (3, SPLIT), (19, SPLIT)])
def test_rows_in_groups(kind: str, groups: int, m: int, form: Form) -> None:
    codes = make(kind, 32, 256, groups, "middle")
    x = draw(m, 256, seed=m, dtype=torch.float16) * torch.tensor([1.0, 0.01], device=DEVICE).repeat_interleave(128)
    x = reference(x.half(), Rounding("fp8" if kind == "fp8" else "int8", group=128))
    held = x.scale_M.new_full((2, -(-m // 4) * 4), torch.nan)[:, :m]
    x = dataclasses.replace(x, scale_M=held.copy_(x.scale_M))
    wanted = F.linear(x.dequantize(), codes.dequantize())
    close = {"rtol": 2**-9, "atol": wanted.abs().max().item() * 2**-10}
    torch.testing.assert_close(skinny_codes(x, codes, form=form).float(), wanted, **close)
    x.scale_M[1, m - 1] *= 30
    wrong = skinny_codes(x, codes, form=form).float()
    torch.testing.assert_close(wrong[:-1], wanted[:-1], **close)
    assert not torch.allclose(wrong[-1], wanted[-1], **close)


@pytest.mark.parametrize("kind", ["fp8", "int8", "int4"])
def test_columns_that_are_no_power_of_two(kind: str) -> None:
    check(make(kind, 48, 384, 3, "middle"), 5, WHOLE, dtype=torch.float16 if DEVICE.type == "cpu" else torch.bfloat16)


def test_one_group_with_offsets_and_blocks_of_64() -> None:
    check(make("int4", 16, 128, 1, "zeros"), 2, Form(8, 16, 128, 1, 1, 2))
    check(make("int4", 16, 128, 2, "zeros"), 2, Form(8, 16, 64, 1, 1, 2, early=1))


@pytest.mark.parametrize("pair", [True, False])
def test_steps_of_two_blocks_and_blocks_of_tokens(pair: bool) -> None:
    """The last tokens fill their block in part, and each block has its own counters."""
    check(make("int4", 32, 512, 4, "zeros"), 37, Form(16, 16, 128, 2, 2, 2, warps=1), pair)
    check(make("fp8", 32, 384, 1, "middle"), 20, Form(16, 16, 128, 2, 1, 2, early=1, warps=1), pair)


@pytest.mark.parametrize(("kind", "groups", "offset"), [case for case in CASES if case[0] != "fp8"])
def test_integers_and_floats(kind: str, groups: int, offset: str) -> None:
    codes = make(kind, 32, 256, groups, offset)
    x = draw(5, 256, dtype=torch.float16) / 4
    wanted = F.linear(x.float(), codes.dequantize())
    got = skinny_codes(x, codes, form=WHOLE)
    torch.testing.assert_close(got.float(), wanted, rtol=2**-8, atol=wanted.abs().max().item() * 2**-8)
    codes.scale_GN[-1, 3] *= 2
    assert not torch.allclose(skinny_codes(x, codes, form=WHOLE)[:, 3].float(), wanted[:, 3], rtol=0.1)


def one_code(codes: CodeMatrix) -> None:
    codes.code_NP.view(torch.uint8)[5, 77] ^= 0x48


def one_scale(codes: CodeMatrix) -> None:
    codes.scale_GN[1, 5] *= 1.5


def one_zero(codes: CodeMatrix) -> None:
    codes.offset_GN[1, 5] += 1


@pytest.mark.parametrize(
    ("kind", "offset", "spoil"),
    [*itertools.product(["fp8", "int8", "int4"], ["middle"], [one_code, one_scale]), ("int4", "zeros", one_zero)],
)
def test_planted_errors_are_seen(kind: str, offset: str, spoil) -> None:
    with pytest.raises(AssertionError, match="not close"):
        check(make(kind, 32, 256, 2, offset), 3, WHOLE, spoil=spoil)


def test_sums_must_be_there_and_are_used() -> None:
    codes = make("int4", 32, 256, 2, "zeros")
    x = round_rows(draw(3, 256), Rounding("int8", True, summed=codes.summed))
    right = skinny_codes(x, codes, form=WHOLE)
    x.sum_BMP[1, 2, 0] += 100
    wrong = skinny_codes(x, codes, form=WHOLE)
    assert torch.equal(wrong[:2], right[:2]) and not torch.allclose(wrong[2], right[2], rtol=0.01)
    with pytest.raises(AssertionError):
        skinny_codes(round_rows(draw(3, 256), Rounding("int8", True)), codes, form=WHOLE)


def test_scales_that_lose_nothing_are_narrow() -> None:
    scale = torch.rand(8, 1)
    assert CodeMatrix.of(torch.zeros(8, 64, dtype=torch.int8), scale, None).scale_GN.dtype == torch.float32
    assert CodeMatrix.of(torch.zeros(8, 64, dtype=torch.int8), scale.bfloat16().float(), None).nbytes == 8 * (64 + 2)


def test_who_is_served() -> None:
    wide = make("int4", 64, 2048, 16, "zeros")
    form = choose(8, 2, wide, 132)
    assert form is not None and form.block == 128 and form.splits > 1 and 2048 % (form.splits * 128) == 0
    assert choose(64, 2, wide, 132) is not None and choose(65, 2, wide, 132) is None
    assert choose(1, 2, make("int4", 64, 512, 16, "middle"), 132) is None  # halves of groups of 32 are too few
    fine = choose(2, 2, make("int8", 64, 512, 16, "middle"), 132)
    assert fine is not None and fine.block == 32
    assert choose(2, 2, make("int8", 72, 512, 1, "middle"), 132) is None  # no tiles of 64 rows
    half = choose_for_floats(200, wide, 132)
    assert half is not None and half.tokens == 128 and choose_for_floats(257, wide, 132) is None
    assert choose_for_floats(8, make("fp8", 64, 512, 1, "middle"), 132) is None
    many = make("fp8", 64, 512, 1, "middle")
    for tokens in (1, 16, 17, 33, 64, 65, 128):
        form = choose(tokens, 1, many, 132)
        assert form is not None
        check(many, tokens, Form(form.tokens, 16, form.block, 1, form.splits, 2, warps=1), pair=False)


@pytest.mark.parametrize("kind", ["int4", "int8", "fp8"])
def test_forms_that_are_chosen_divide_the_matrix(kind: str) -> None:
    for rows, columns in itertools.product((64, 192, 4096, 28672), (128, 384, 1408, 4096, 14336)):
        group = 128 if kind == "int4" else columns
        block = 128 if kind == "int4" else 0
        code = torch.empty(rows, columns // 2 if block else columns, device="meta")
        codes = CodeMatrix(kind, code, torch.empty(columns // group, rows, device="meta"), None, block)
        for tokens, parts in itertools.product((1, 9, 33, 64, 100, 256), (1, 2)):
            for form in (choose(tokens, parts, codes, 132), choose_for_floats(tokens, codes, 132)):
                if form is not None:
                    assert rows % form.rows == 0 and columns % (form.splits * form.block) == 0
                    assert columns // (form.splits * form.block) % form.unroll == 0
                    assert codes.group % form.block == 0
        assert choose(1, 2, codes, 132) is not None
