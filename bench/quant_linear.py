"""Products with quantised weights on a GPU, over the rows of x: time, share of the memory's and of the cores' rate.

    scripts/bench quant_linear [--kinds fp8 int8 int4] [--rows 256 2048] [--json FILE] [--plot FILE]
    scripts/bench quant_linear --sweep [--rows 256 2048]

The four matrices of a layer of Llama-3-8B, as the engine calls them for a bfloat16 model, with what it does for each
call around the product (rounding of x, decoding of W); each call reads other weights, together more than any cache
holds. fp8 and int8 are W8A8 with a scale a row, fp8-blocks with one for 128 x 128 of W and 1 x 128 of x, w8a16 is int8
of weights alone, int4 W4A16 in groups of 128, awq likewise with zero points. The floor is the larger of the bytes of
codes and scales at 4.3 TB/s and the operations at 780 TFLOP/s (W8A8: 1450). Times are medians of CUDA graph replays.
"bf16" is the plain product through cuBLAS. `--sweep` compares forms of the kernel for many rows of int8 with torch's
product without scales, for each matrix, without the rounding of x.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.moe import measure
from octavo.kernels.codes import CodeMatrix, Rounding
from octavo.kernels.many_codes import Form, choose, many_codes
from octavo.kernels.row_codes import round_rows
from octavo.quant.methods import select_method
from octavo.quant.pack import to_fp8, to_int4, to_int8
from octavo.quant.schemes import Float8, Integers, Scheme, unrounded

SHAPES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
ROWS = [2**power for power in range(13)]
KINDS: dict[str, Callable[[Tensor], Scheme]] = {
    "fp8": to_fp8,
    "fp8-blocks": lambda weight: fp8_blocks(weight),
    "int8": to_int8,
    "w8a16": lambda weight: unrounded(to_int8(weight)),
    "int4": lambda weight: to_int4(weight, 128),
    "awq": lambda weight: int4_with_zeros(weight),
}
BANDWIDTH, RATES = 4.3e12, dict.fromkeys(("fp8", "fp8-blocks", "int8"), 1450e12)  # others 780
TILES = ((128, 256, 8), (256, 128, 8), (128, 128, 8), (128, 128, 4), (128, 64, 4), (64, 128, 4))  # and warps
CACHE_BYTES = 200 << 20  # that calls together read, at least
DTYPE = torch.bfloat16


def fp8_blocks(weight_NK: Tensor) -> Float8:
    """A scale for each 128 x 128, as checkpoints of DeepSeek-V3's kind have them."""
    (n, k), size = weight_NK.shape, 128
    found = to_fp8(weight_NK.view(n // size, size, k // size, size).transpose(1, 2).reshape(-1, size * size))
    code_NK = found.code_NK.view(n // size, k // size, size, size).transpose(1, 2).reshape(n, k)
    return Float8(code_NK, found.scale_NG.view(n // size, -1).repeat_interleave(size, 0), dynamic=True)


def int4_with_zeros(weight_NK: Tensor) -> Integers:
    found = to_int4(weight_NK, 128)
    zero_NG = torch.randint_like(found.scale_NG, 4, 12)
    return Integers(found.code_NP, found.scale_NG, -zero_NG * found.scale_NG)


def layer(kind: str, rows: list[int]) -> dict[int, tuple[float, float]]:
    """(us, floor in us) of a layer's four products, by rows of x."""
    device = torch.device("cuda", torch.cuda.current_device())
    found = dict.fromkeys(rows, (0.0, 0.0))
    for n, k in SHAPES.values():
        weight = torch.empty(n, k, device=device).normal_(0, 0.02)
        products: list[Callable[[Tensor], Tensor]] = []
        size = 0.0
        while not products or size * len(products) < CACHE_BYTES:
            if kind == "bf16":
                plain = weight.to(DTYPE, copy=True)
                products.append(lambda x, w=plain: F.linear(x, w))
                size = plain.nbytes
            else:
                scheme = KINDS[kind](weight)
                method = select_method(scheme, DTYPE, device)[0]
                assert method is not None
                products.append(method(scheme, DTYPE))
                size = products[-1].nbytes
        for m in rows:
            x = torch.randn(m, k, device=device).to(DTYPE)
            us = measure([lambda product=product, x=x: product(x) for product in products], rounds=5)
            floor = max(size / BANDWIDTH, 2 * m * n * k / RATES.get(kind, 780e12)) * 1e6
            found[m] = found[m][0] + us, found[m][1] + floor
    return found


def sweep(rows: list[int]) -> None:
    """Every form of the kernel for many rows of int8."""
    for (name, (n, k)), m in itertools.product(SHAPES.items(), rows):
        scheme = to_int8(torch.empty(n, k, device="cuda").normal_(0, 0.02))
        codes = CodeMatrix.of(scheme.code_NP, scheme.scale_NG, None)
        x = round_rows(torch.randn(m, k, device="cuda").to(DTYPE), Rounding("int8"))
        wanted = x.dequantize() @ codes.dequantize().T
        found = {"torch._int_mm": measure([partial(torch._int_mm, x.code_MPE[:, 0], scheme.code_NP.t())], rounds=5)}
        for size, block, stages in itertools.product(TILES, (64, 128), (3, 4)):
            form = Form(*size[:2], block, size[2], stages)
            product = partial(many_codes, x, codes, form=form)
            try:
                assert (product().float() - wanted).norm() < 1e-2 * wanted.norm(), form
                found[str(form)] = measure([product], rounds=5)
            except Exception as error:  # what a GPU has no room for: Triton's errors have no common class
                torch.cuda.synchronize()
                print(f"  {form}: {type(error).__name__}", flush=True)
        chosen = choose(m, n, torch.cuda.get_device_properties("cuda").multi_processor_count)
        print(f"{name}, {m} rows, chosen is {chosen}; us (TOP/s):", flush=True)
        for which, us in sorted(found.items(), key=lambda pair: pair[1])[:6]:
            print(f"  {which}: {us:.1f} ({2e-6 * m * n * k / us:.0f})", flush=True)


def plot(figures: dict[str, dict[int, tuple[float, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    _, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    for kind, found in figures.items():
        left.plot(list(found), [us for us, _ in found.values()], marker="o", label=kind)
        right.plot(list(found), [100 * floor / us for us, floor in found.values()], marker="o", label=kind)
    for axes, title in ((left, "microseconds of a layer's products"), (right, "share of the floor, %")):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="rows of x", title=title)
        axes.grid(True, alpha=0.3)
        axes.legend()
    left.set(yscale="log")
    pyplot.tight_layout()
    pyplot.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS, "bf16"], default=["bf16", *KINDS])
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--plot", type=Path, help="write a PNG")
    parser.add_argument("--sweep", action="store_true", help="compare forms of the kernel for many rows of int8")
    options = parser.parse_args()
    if options.sweep:
        sweep(options.rows)
        return
    figures = {}
    for kind in options.kinds:
        figures[kind] = layer(kind, options.rows)
        line = ", ".join(f"{m}: {us:.1f} ({100 * floor / us:.0f}%)" for m, (us, floor) in figures[kind].items())
        print(f"{kind}: us of a layer (share of the floor) by rows of x: {line}", flush=True)
    if options.json:
        head = {"date": str(date.today()), "device": torch.cuda.get_device_name()}
        options.json.write_text(json.dumps(head | figures, indent=1), encoding="utf-8")
    if options.plot:
        plot(figures, options.plot)


if __name__ == "__main__":
    main()
