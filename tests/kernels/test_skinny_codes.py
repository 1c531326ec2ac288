"""Products of few rows with quantised weights against torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from octavo.kernels.codes import CodeMatrix
from octavo.kernels.skinny_codes import BLOCK, choose
from octavo.kernels.skinny_codes import skinny_codes as product
from octavo.kernels.skinny_linear import Tiles, Vectors
from octavo.quant.schemes import pack_halves

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VECTORS = Vectors(rows=4, warps=1, per_sm=2)
WHOLE = Tiles(block=BLOCK, splits=1, stages=2, early=1, rows=16, warps=1)
SPLIT = Tiles(block=BLOCK, splits=2, stages=2, early=0, rows=16, warps=1)


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
    kept = None if codes.offset_NG is None else codes.offset_NG.dtype
    assert kept == {"middle": None, "zeros": torch.uint8, "free": torch.float32}[offset]
    return codes


def check(codes: CodeMatrix, m: int, config, silu=False, bias=False, residual=False, dtype=torch.float16, spoil=None):
    generator = torch.Generator().manual_seed(m)
    rows, columns = codes.shape
    out = rows // 2 if silu else rows

    def draw(*shape):
        return (torch.randn(shape, generator=generator) / 4).to(DEVICE, dtype)

    x, bias_F, added = draw(m, columns), draw(rows) if bias else None, draw(m, out) if residual else None
    wanted = F.linear(x.float(), codes.dequantize(), None if bias_F is None else bias_F.float())
    if silu:
        gate, up = wanted.chunk(2, -1)
        wanted = F.silu(gate) * up
    if added is not None:
        wanted += added.float()
    if spoil is not None:
        spoil(codes)
    got = product(x, codes, bias_F, config=config, residual_MO=added, silu=silu)
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
]


@pytest.mark.parametrize(("kind", "groups", "offset"), CASES)
@pytest.mark.parametrize("after", ["nothing", "silu", "residual"])
@pytest.mark.parametrize(("m", "config"), [(1, VECTORS), (3, WHOLE), (17, SPLIT)])
def test_skinny_codes(kind, groups, offset, after, m, config):
    check(make(kind, 32, 256, groups, offset), m, config, after == "silu", after != "nothing", after == "residual")


@pytest.mark.parametrize("kind", ["fp8", "int8", "int4"])
def test_rows_and_columns_that_are_no_powers_of_two(kind):
    check(make(kind, 37, 384, 3, "middle"), 1, VECTORS, bias=True)
    check(make(kind, 48, 384, 3, "middle"), 5, WHOLE, residual=True)


def test_one_group_with_offsets():
    check(make("int4", 16, 128, 1, "zeros"), 2, Tiles(BLOCK, 1, 2, 0, 16, 1))
    check(make("int4", 16, 128, 1, "zeros"), 1, VECTORS)


@pytest.mark.parametrize("kind", ["fp8", "int8", "int4"])
def test_vectors_of_bfloat16(kind):
    check(make(kind, 8, 256, 2, "middle"), 1, VECTORS, dtype=torch.bfloat16)


def one_code(codes):
    codes.code_NP.view(torch.uint8)[5, 77] ^= 0x48


def one_scale(codes):
    codes.scale_NG[5, 1] *= 1.5


@pytest.mark.parametrize("spoil", [one_code, one_scale])
@pytest.mark.parametrize("kind", ["fp8", "int8", "int4"])
@pytest.mark.parametrize(("m", "config"), [(1, VECTORS), (3, WHOLE)])
def test_planted_errors_are_seen(kind, spoil, m, config):
    with pytest.raises(AssertionError):
        check(make(kind, 32, 256, 2, "middle"), m, config, spoil=spoil)


def test_scales_that_lose_nothing_are_narrow():
    scale = torch.rand(8, 1)
    assert CodeMatrix.of(torch.zeros(8, 64, dtype=torch.int8), scale, None).scale_NG.dtype == torch.float32
    assert CodeMatrix.of(torch.zeros(8, 64, dtype=torch.int8), scale.bfloat16().float(), None).nbytes == 8 * (64 + 2)


def test_who_is_served():
    half = torch.float16
    assert isinstance(choose(1, make("int4", 64, 512, 4, "middle"), half, 132), Vectors)
    wide = make("int4", 64, 2048, 16, "zeros")
    tiles = choose(8, wide, half, 132)
    assert isinstance(tiles, Tiles) and tiles.block == 128 and 2048 % (tiles.splits * 128) == 0
    assert choose(33, wide, half, 132) is None and choose(1, wide, torch.float32, 132) is None
    assert choose(1, make("int4", 64, 512, 8, "middle"), half, 132) is None  # groups of 64: other blocks
    fine = choose(2, make("int8", 64, 512, 16, "middle"), half, 132)
    assert isinstance(fine, Tiles) and fine.block == 32
    assert choose(2, make("int8", 72, 512, 1, "middle"), half, 132) is None  # no tiles of 64 rows
