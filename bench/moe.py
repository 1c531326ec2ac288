"""Experts on a GPU: time, TB/s of the weights that are needed and TFLOP/s, by model and number of tokens.

    scripts/bench moe [--models qwen3-30b-a3b ...] [--kind bf16|fp8|fp8-blocks|int8|int4|mxfp4] [--tokens 1 8 ...]
    scripts/bench moe --tune [--kind ...]

Activations are bfloat16, and so are weights unless `--kind` says what they are kept as; a call is all of a layer behind
its router's logits: routing, both products, the weighted sum. Times are medians of CUDA graph replays, in which each
call reads another layer's weights, together more than any cache holds. Tokens go to experts by lot. The bytes are those
of the experts that have a token, scales included, once, and their share is of 4.3 TB/s, what an H200 reads; "dense" is
the same number of operations in one matrix product of bfloat16 through cuBLAS.

`--tune` measures every form that could serve each number of tokens, checks it against torch, and writes the fastest to
octavo/moe/tuned/DEVICE.json, where the engine finds it. An entry is good for numbers of tokens up to its own. Kernels
are compiled by several processes first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.moe import forms
from octavo.moe.base import ExpertWeights, MoeSpec, Routing
from octavo.moe.forms import Form, Grouped, Pairs, Tiles
from octavo.moe.torch_backend import TorchExperts
from octavo.moe.triton_backend import OF_WEIGHTS, TritonExperts
from octavo.quant.mxfp4 import Mxfp4
from octavo.quant.pack import to_fp8, to_int4, to_int8
from octavo.quant.schemes import Float8, Plain, Scheme

MODELS = {  # routing, hidden size, inner size
    "qwen3-30b-a3b": (Routing(128, 8, renormalize=True), 2048, 768),
    "mixtral-8x7b": (Routing(8, 2, renormalize=True), 4096, 14336),
    "deepseek-v2-lite": (Routing(64, 6), 2048, 1408),
    "gpt-oss-20b": (Routing(32, 4, "chosen"), 2880, 2880),
}
KINDS: dict[str, Callable[[Tensor], Scheme]] = {
    "bf16": Plain,
    "fp8": to_fp8,
    "fp8-blocks": lambda weight: fp8_blocks(weight),
    "int8": to_int8,
    "int4": lambda weight: to_int4(weight, 128 if weight.shape[1] % 128 == 0 else 64),
    "mxfp4": lambda weight: random_mxfp4(weight),
}
READS = 4.3  # TB/s
TOKENS = [1, 8, 64, 256, 2048, 16384]
TUNED = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
CACHE_BYTES = 200 << 20  # of weights that calls together read, at least: four times an H200's cache
DTYPE = torch.bfloat16


def fp8_blocks(weight_NK: Tensor) -> Float8:
    """A scale for each row and 128 columns (or 64), as blocks of 128 x 128 become when they are read."""
    rows, columns = weight_NK.shape
    found = to_fp8(weight_NK.view(-1, 128 if columns % 128 == 0 else 64))
    return Float8(found.code_NK.view(rows, columns), found.scale_NG.view(rows, -1))


def random_mxfp4(weight_NK: Tensor) -> Mxfp4:
    """Any codes, with scales that make them as large as other weights here."""
    rows, columns = weight_NK.shape
    code = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device=weight_NK.device)
    scale = torch.randint(119, 122, (rows, columns // 32), dtype=torch.uint8, device=weight_NK.device)
    return Mxfp4(code, scale)


class Layers:
    """As many layers of a model as no cache holds, with random weights."""

    def __init__(self, name: str, kind: str, most: int = 48) -> None:
        routing, hidden, inner = MODELS[name]
        device = torch.device("cuda", torch.cuda.current_device())
        self.spec = MoeSpec(routing, hidden, inner, "silu", DTYPE, device)
        self.shapes = (routing.num_experts * 2 * inner, hidden), (routing.num_experts * hidden, inner)
        first = self.make(kind)
        self.expert_bytes = first.nbytes // routing.num_experts
        # One token reads `top_k` experts of a layer.
        count = min(most, max(2, -(-CACHE_BYTES // (self.expert_bytes * routing.top_k))))
        count = min(count, max(1, int(torch.cuda.mem_get_info()[0] * 0.7) // first.nbytes))
        self.layers = [first, *(self.make(kind) for _ in range(count - 1))]

    def make(self, kind: str) -> TritonExperts:
        schemes = [KINDS[kind](self.draw(*shape)) for shape in self.shapes]
        return TritonExperts(self.spec, ExpertWeights(*schemes))

    def decoded(self) -> ExpertWeights:
        """The weights of the first layer, as plain as they are multiplied."""
        found = self.layers[0].gate_up, self.layers[0].down
        plain = (m.weight if m.codes is None else m.codes.dequantize().to(DTYPE) for m in found)
        return ExpertWeights(*(Plain(weight) for weight in plain))

    def draw(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=DTYPE, device="cuda").normal_(0, 0.02)

    def inputs(self, tokens: int) -> tuple[Tensor, Tensor]:
        logits = torch.randn(len(self.layers), tokens, self.spec.routing.num_experts, device="cuda")
        return self.draw(tokens, self.spec.hidden_size), logits

    def calls(self, tokens: int, form: Form | None) -> list[Callable[[], Tensor]]:
        x, logits = self.inputs(tokens)
        return [
            lambda layer=layer, own=own: layer.compute(form or layer.form(tokens), x, own, None, None)
            for layer, own in zip(self.layers, logits, strict=True)
        ]

    def used(self, tokens: int) -> float:
        """Experts that have a token, on average."""
        routing = self.spec.routing
        return routing.num_experts * (1 - (1 - routing.top_k / routing.num_experts) ** tokens)

    def flops(self, tokens: int) -> float:
        return 6 * tokens * self.spec.routing.top_k * self.spec.hidden_size * self.spec.inner_size


def measure(calls: list[Callable[[], object]], rounds: int = 9) -> float:
    """Microseconds of a call in a graph of them all."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times) / len(calls) * 1000


def verify(layers: Layers, tokens: int, form: Form) -> None:
    """Near torch's own, and the same in every run."""
    x, logits = layers.inputs(tokens)
    layer = layers.layers[0]
    first = layer.compute(form, x, logits[0], None, None)
    wanted = TorchExperts(layers.spec, layers.decoded())(x, logits[0], None, None).float()
    assert (first.float() - wanted).norm() < 1e-2 * wanted.norm(), (tokens, form)
    for _ in range(5):
        assert torch.equal(first, layer.compute(form, x, logits[0], None, None)), (tokens, form)


def candidates(layers: Layers, tokens: int) -> Iterator[Form]:
    """All that may be worth a try for so many tokens."""
    routing = layers.spec.routing
    rows = tokens * routing.top_k / routing.num_experts
    stored = layers.layers[0].stored
    coded = stored != "plain"
    if tokens <= 16:
        for outputs, block, warps, stages in itertools.product((2, 4, 8), (256, 512, 1024), (4, 8), (1, 2)):
            if 1024 <= outputs * block <= 4096:
                yield Pairs(outputs, block, warps, stages)
    for tile, outputs, block, warps, stages in itertools.product(
        (16, 32, 64, 128), (32, 64, 128) if coded else (64, 128), (128, 256) if coded else (64, 128), (4, 8), (3, 4)
    ):
        shared = stages * block * (2 * outputs * OF_WEIGHTS.get(stored, 2) + tile * 2)
        if shared <= 220 << 10 and outputs * tile <= 128 * 128 and (tile == 16 or rows / 4 <= tile <= 8 * rows):
            yield Tiles(tile, outputs, block, warps, stages)
    if rows >= 4 and layers.layers[0].grouped:
        yield Grouped()


def fastest(layers: Layers, tokens: int) -> tuple[Form, float]:
    found: list[tuple[float, Form]] = []
    for form in candidates(layers, tokens):
        try:
            found.append((measure(layers.calls(tokens, form), rounds=3), form))
        except Exception as error:  # what a GPU has no room for: Triton's errors have no common class
            torch.cuda.synchronize()
            print(f"  {form}: {type(error).__name__}", flush=True)
    found.sort(key=lambda pair: pair[0])
    best = min(((measure(layers.calls(tokens, form)), form) for _, form in found[:5]), key=lambda pair: pair[0])
    verify(layers, tokens, best[1])
    return best[1], best[0]


def compile_all(name: str, kind: str, tokens: list[int], share: int, shares: int) -> None:
    """Every form that may be tried, once: every `shares`-th is this process's."""
    layers = Layers(name, kind, most=1)
    wanted = {(form, count) for count in tokens for form in candidates(layers, count)}
    once = {str(form): (form, count) for form, count in sorted(wanted, key=str)}
    for form, count in list(once.values())[share::shares]:
        try:
            layers.calls(count, form)[0]()
        except Exception as error:
            print(f"  {form}: {type(error).__name__}", flush=True)
    torch.cuda.synchronize()


def tune(names: list[str], kind: str, tokens: list[int]) -> None:
    shares = max(1, (os.cpu_count() or 1) - 2)
    for name in names:
        command = [sys.executable, "-m", "bench.moe", "--models", name, "--kind", kind, "--tokens"]
        command += [*map(str, tokens), "--compile"]
        for process in [subprocess.Popen([*command, str(share), str(shares)]) for share in range(shares)]:
            process.wait()
    path = forms.TUNED / f"{torch.cuda.get_device_name().replace(' ', '_')}.json"
    shapes: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in names:
        layers = Layers(name, kind)
        spec = layers.spec
        key = forms.shape_key(spec.routing, spec.inner_size, spec.hidden_size, layers.layers[0].stored)
        entries = shapes.setdefault(key, {})
        for count in tokens:
            rule = measure(layers.calls(count, None))
            form, best = fastest(layers, count)
            entries[str(count)] = forms.write(form)
            print(f"{name} {count}: {rule:.1f} -> {best:.1f} us, {form}", flush=True)
            path.write_text(json.dumps(shapes, indent=1) + "\n", encoding="utf-8")
        del layers
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--kind", choices=KINDS, default="bf16", help="what weights are kept as")
    parser.add_argument("--tokens", nargs="+", type=int)
    parser.add_argument("--tune", action="store_true", help="write the fastest forms for this GPU")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--compile", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compile:
        compile_all(options.models[0], options.kind, options.tokens, *options.compile)
        return
    if options.tune:
        tune(options.models, options.kind, options.tokens or TUNED)
        return
    figures: dict[str, object] = {"date": str(date.today()), "device": torch.cuda.get_device_name()}
    for name in options.models:
        layers = Layers(name, options.kind)
        print(f"{name} {options.kind}: {layers.expert_bytes / 1e6:.2f} MB an expert", flush=True)
        print("tokens, us, TB/s of weights, its share, TFLOP/s, us of one dense product, form", flush=True)
        for tokens in options.tokens or TOKENS:
            form = layers.layers[0].form(tokens)
            verify(layers, tokens, form)
            us = measure(layers.calls(tokens, form))
            pairs = tokens * layers.spec.routing.top_k
            x, weight = layers.draw(pairs, layers.spec.hidden_size), layers.draw(3 * layers.spec.inner_size, 1)
            weight = weight.expand(-1, layers.spec.hidden_size).contiguous()
            dense = measure([lambda x=x, w=weight: x @ w.T] * 3)
            rate = layers.used(tokens) * layers.expert_bytes / us / 1e6
            speed = layers.flops(tokens) / us / 1e6
            figures[f"{name} {options.kind} {tokens}"] = {
                "us": us,
                "TB/s": rate,
                "TFLOP/s": speed,
                "dense us": dense,
                "form": str(form),
            }
            print(
                f"{tokens:>8} {us:>10.1f} {rate:>6.2f} {rate / READS:>5.0%} {speed:>7.1f} {dense:>10.1f}  {form}",
                flush=True,
            )
        del layers
        torch.cuda.empty_cache()
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
