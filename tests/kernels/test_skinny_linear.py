"""Linear layers of few rows against torch, and their compilation for GPUs that are not here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from octavo.kernels import skinny_linear as skinny
from octavo.kernels.skinny_linear import Tiles, Vectors

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = torch.float16
SMALL = Tiles(block=16, splits=1, stages=2, early=0, rows=16, warps=1)
SPLIT = Tiles(block=16, splits=2, stages=2, early=1, rows=16, warps=1)
VECTORS = Vectors(rows=4, warps=1, per_sm=2)


def draw(*shape: int, dtype: torch.dtype = HALF, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.5 * torch.randn(shape, generator=generator)).to(DEVICE, dtype)


def check(m, size, out, config, silu=False, bias=False, residual=False, dtype=HALF, spoil=lambda inputs: None):
    inputs = {
        "x_ME": draw(m, size, dtype=dtype),
        "weight_FE": draw(2 * out if silu else out, size, dtype=dtype, seed=1),
        "bias_F": draw(2 * out if silu else out, dtype=dtype, seed=2) if bias else None,
        "residual_MO": draw(m, out, dtype=dtype, seed=3) if residual else None,
    }
    wanted = skinny.reference_linear(**inputs, silu=silu)
    spoil(inputs)
    got = skinny.skinny_linear(**inputs, silu=silu, config=config)
    # float16 arithmetic of torch's reference on a CPU rounds at other places.
    near = {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {"rtol": 4e-3, "atol": 4e-3}
    torch.testing.assert_close(got, wanted, **near)


@pytest.mark.parametrize(
    ("m", "size", "out", "config"),
    [
        (1, 32, 8, VECTORS),
        (2, 40, 9, VECTORS),  # neither whole blocks of rows nor a power of two
        (1, 64, 37, Vectors(rows=1, warps=1, per_sm=4)),
        (3, 64, 32, SMALL),
        (16, 64, 32, SPLIT),
        (17, 64, 16, SPLIT),
    ],
)
@pytest.mark.parametrize("after", ["nothing", "silu", "residual"])
def test_skinny_linear(m, size, out, config, after):
    check(m, size, out, config, silu=after == "silu", bias=size != 64, residual=after == "residual")


def test_bias_of_tiles():
    check(3, 64, 16, SPLIT, bias=True, residual=True)
    check(3, 64, 16, SMALL, bias=True, silu=True)


def test_vectors_of_bfloat16():
    """Their arithmetic is in float32, which the interpreter can."""
    check(2, 40, 8, VECTORS, dtype=torch.bfloat16, residual=True)


@pytest.mark.parametrize("config", [VECTORS, SPLIT])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("adds", [False, True])
def test_norm_linear(config, wide, adds):
    x, stream, weight = draw(2, 64), draw(2, 64, seed=1) if adds else None, draw(32, 64, seed=2)
    norm = (draw(64, seed=3), 1e-5, wide)
    normed, grown = skinny.reference_norm(x, stream, norm)
    twin = None if stream is None else stream.clone()
    got, new = skinny.norm_linear(x, twin, norm, weight, config=config)
    assert torch.equal(new, grown)
    torch.testing.assert_close(got, skinny.reference_linear(normed, weight), rtol=4e-3, atol=4e-3)
    got, _ = skinny.norm_linear(x, stream, norm, weight, config=config, silu=True)
    torch.testing.assert_close(got, skinny.reference_linear(normed, weight, silu=True), rtol=4e-3, atol=4e-3)
    if not adds:
        assert new is x


def test_counters_of_split_products_are_left_at_zero():
    check(3, 64, 32, SPLIT)
    assert not skinny.counters(DEVICE).any()
    check(5, 64, 32, SPLIT, residual=True)


@pytest.mark.parametrize("config", [VECTORS, SMALL, SPLIT])
@pytest.mark.parametrize("name", ["x_ME", "weight_FE", "bias_F", "residual_MO"])
def test_a_wrong_input_is_seen(config, name):
    def spoil(inputs):
        inputs[name].view(-1)[-1] += 1.0

    with pytest.raises(AssertionError):
        check(2, 64, 16, config, bias=True, residual=True, spoil=spoil)


def test_a_wrong_norm_is_seen():
    x, weight, norm = draw(2, 64), draw(16, 64, seed=1), draw(64, seed=2)
    for config in (VECTORS, SPLIT):
        got, _ = skinny.norm_linear(x, None, (norm, 0.5, False), weight, config=config)
        wanted = skinny.reference_linear(skinny.reference_norm(x, None, (norm, 1e-5, False))[0], weight)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(got, wanted, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("sms", [108, 132])
def test_choices_can_be_launched(sms):
    sizes = (896, 2048, 2560, 3072, 3584, 4096, 5120, 8192, 11008, 14336, 18944, 28672)
    for m in (1, 2, 3, 8, 16, 17, 32):
        for n in (*sizes, 6144, 37888, 57344, 128256, 151936, 151937):
            for k in (*sizes, 2056):
                config = skinny.choose(m, n, k, sms)
                if isinstance(config, Tiles):
                    assert n % config.rows == 0 and k % (config.splits * config.block) == 0
                    assert k // (config.splits * config.block) > config.early
                elif isinstance(config, Vectors):
                    assert m <= 2 and m * k <= 16384
                else:
                    assert n % 64 or k % 128


def test_where_cublas_computes():
    cpu = torch.device("cpu")
    assert skinny.use_skinny(1, 4096, 4096, torch.bfloat16, cpu) is None
    cuda = torch.device("cuda")
    assert skinny.use_skinny(33, 4096, 4096, torch.bfloat16, cuda) is None
    assert skinny.use_skinny(1, 4096, 4096, torch.float32, cuda) is None
    assert skinny.use_skinny(1, 4096, 4099, torch.bfloat16, cuda) is None


def test_kernels_compile_for_every_target(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-m", "tests.kernels.test_skinny_linear"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.split()) == 10


def compile_for_every_target() -> None:
    import triton
    from triton.compiler import ASTSource

    from tests.kernels.compile_all import TARGETS

    flags = {"SILU": True, "RESIDUAL": True, "BIAS": True}
    vectors = {"M": 1, "K": 2048, "W_P2": 1024, "R": 4, "ADD": True, "NORM": True, "WIDE": False} | flags
    tiles = {"K": 2048, "M_P2": 16, "R": 64, "BLOCK": 64, "SPLITS": 4, "STAGES": 2, "EARLY": 1} | flags
    types = {"partial_ptr": "*fp32", "arrived_ptr": "*i32", "eps": "fp32", "rows": "i32", "count": "i32"}
    kernels = (skinny.vectors_kernel, vectors), (skinny.tiles_kernel, tiles)
    for kernel, constants in kernels:
        names = kernel.arg_names
        for target in TARGETS:
            chained = target.backend == "cuda" and target.arch >= 90
            values = constants | {"CHAINED": chained}
            signature = {n: "constexpr" if n in values else types.get(n, "*bf16") for n in names}
            aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n] != "constexpr"}
            source = ASTSource(kernel, signature, {(names.index(n),): v for n, v in values.items()}, aligned)
            built = triton.compile(source, target=target, options=skinny.CHAIN[chained])
            assert len(built.asm["cubin" if target.backend == "cuda" else "hsaco"]) > 1000
            print(kernel.__name__)


if __name__ == "__main__":
    compile_for_every_target()
