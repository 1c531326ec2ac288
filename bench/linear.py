"""Linear layers of decode steps on a GPU: time and bytes of weights a second, ours beside cuBLAS.

    scripts/bench linear [--json FILE]

bfloat16; shapes of Llama-3-8B and Llama-3.2-1B; every launch reads other weights, together more than any cache holds.
Times are medians of CUDA graph replays. "Alone" is one layer again and again, as the decode layer calls it (with norm,
silu or residual; chained), against the bare product through `F.linear`. A chain is the linear part of the whole model:
norm + qkv, o + residual, norm + gate_up + silu, down + residual, without what lies between qkv and o.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from datetime import date

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.kernels import elementwise, skinny_linear
from octavo.kernels.skinny_linear import Config, norm_linear, use_skinny

MODELS = {  # hidden, qkv, inner, layers, vocabulary
    "8B": (4096, 6144, 14336, 32, 128256),
    "1B": (2048, 3072, 8192, 16, 128256),
}
ROWS = [1, 2, 4, 8, 16, 32, 64]
NAMES = ["qkv", "o", "gate_up", "down"]
DTYPE = torch.bfloat16
EPS = 1e-5


class Model:
    """The linear part of a model, with random weights."""

    def __init__(self, name: str, layers: int | None = None) -> None:
        self.hidden, qkv, inner, all_layers, vocabulary = MODELS[name]
        self.shapes = {
            "qkv": (qkv, self.hidden),
            "o": (self.hidden, self.hidden),
            "gate_up": (2 * inner, self.hidden),
            "down": (self.hidden, inner),
        }
        self.sets = [{n: self.draw(*shape) for n, shape in self.shapes.items()} for _ in range(layers or all_layers)]
        self.shapes["head"] = (vocabulary, self.hidden)
        self.heads = [self.draw(vocabulary, self.hidden) for _ in range(2)]
        self.norm = (1 + 0.1 * torch.randn(self.hidden, device="cuda")).to(DTYPE)
        self.layer_bytes = sum(w.nbytes for w in self.sets[0].values())

    def draw(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=DTYPE, device="cuda").normal_(0, 0.02)

    def weights(self, name: str) -> list[Tensor]:
        return self.heads if name == "head" else [weights[name] for weights in self.sets]

    def input(self, name: str, m: int) -> Tensor:
        return torch.randn(m, self.shapes[name][1], device="cuda").to(DTYPE)

    def call(self, name: str, x: Tensor, weight: Tensor, stream: Tensor, config: Config, chained: bool) -> Tensor:
        """One linear layer with what the decode layer fuses to it."""
        if name in ("o", "down"):
            return skinny_linear.skinny_linear(x, weight, residual_MO=stream, config=config, chained=chained)
        norm = (self.norm, EPS, False)
        silu = name == "gate_up"
        return norm_linear(x, None, norm, weight, config=config, silu=silu, chained=chained)[0]

    def reference(self, name: str, x: Tensor, weight: Tensor, stream: Tensor) -> Tensor:
        if name in ("o", "down"):
            return skinny_linear.reference_linear(x, weight, residual_MO=stream)
        normed = skinny_linear.reference_norm(x, None, (self.norm, EPS, False))[0]
        return skinny_linear.reference_linear(normed, weight, silu=name == "gate_up")

    def choose(self, name: str, m: int) -> Config | None:
        return use_skinny(m, *self.shapes[name], DTYPE, torch.device("cuda", torch.cuda.current_device()))

    def layer(self, m: int, chained: bool, configs: dict[str, Config | None]) -> Callable[[dict[str, Tensor]], None]:
        stream, attended = self.input("o", m), self.input("o", m)

        def run(weights: dict[str, Tensor]) -> None:
            self.call("qkv", stream, weights["qkv"], stream, configs["qkv"], chained)
            grown = self.call("o", attended, weights["o"], stream, configs["o"], chained)
            inner = self.call("gate_up", grown, weights["gate_up"], grown, configs["gate_up"], chained)
            self.call("down", inner, weights["down"], grown, configs["down"], chained)

        return run

    def plain_layer(self, m: int) -> Callable[[dict[str, Tensor]], None]:
        """As without skinny linears: cuBLAS, and the fused kernels between."""
        x, attended, stream = self.input("o", m), self.input("o", m), self.input("o", m)

        def run(weights: dict[str, Tensor]) -> None:
            normed, _ = elementwise.add_rms_norm(x, stream, self.norm, EPS)
            F.linear(normed, weights["qkv"])
            normed, _ = elementwise.add_rms_norm(F.linear(attended, weights["o"]), stream, self.norm, EPS)
            F.linear(elementwise.gate(F.linear(normed, weights["gate_up"]), "silu"), weights["down"])

        return run


def measure(calls: list[Callable[[], object]]) -> float:
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
    for _ in range(9):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times) / len(calls) * 1000


def verify(model: Model, name: str, m: int, config: Config) -> None:
    """Near the reference, and the same in every run."""
    x, weight = model.input(name, m), model.weights(name)[0]
    stream = model.input("o", m)
    first = model.call(name, x, weight, stream, config, True)
    wanted = model.reference(name, x, weight, stream).float()
    assert (first.float() - wanted).norm() < 1e-2 * wanted.norm(), (name, m, config)
    for _ in range(20):
        assert torch.equal(first, model.call(name, x, weight, stream, config, True)), (name, m, config)


def alone(model: Model, name: str, m: int, config: Config | None = None) -> tuple[float, float | None]:
    """Microseconds of cuBLAS and of ours."""
    x, stream = model.input(name, m), model.input("o", m)
    weights = model.weights(name) * (12 if name == "head" else 1)
    cublas = measure([lambda w=w: F.linear(x, w) for w in weights])
    config = config or model.choose(name, m)
    if config is None:
        return cublas, None
    verify(model, name, m, config)
    return cublas, measure([lambda w=w: model.call(name, x, w, stream, config, True) for w in weights])


def chain(model: Model, m: int, chained: bool = True, changes: dict[str, Config] | None = None) -> float:
    """Microseconds a layer."""
    configs = {name: model.choose(name, m) for name in NAMES} | (changes or {})
    run = model.layer(m, chained, configs)
    return measure([lambda w=w: run(w) for w in model.sets])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    figures: dict[str, object] = {"date": str(date.today()), "device": torch.cuda.get_device_name()}
    for title in MODELS:
        model = Model(title)
        print(f"{title}: us (TB/s of weights)\n{'':12}" + "".join(f"{m:>24}" for m in ROWS))
        for name, (rows, size) in model.shapes.items():
            line = []
            for m in ROWS:
                cublas, ours = alone(model, name, m)
                figures[f"{title} {name} {m}"] = [cublas, ours]
                rate = rows * size * 2 / 1e6
                line.append(f"{cublas:.1f} -> " + (f"{ours:.1f} ({rate / ours:.2f})" if ours else "-"))
            print(f"{name:12}" + "".join(f"{text:>24}" for text in line), flush=True)
        for m in ROWS:
            run = model.plain_layer(m)
            times = {"cuBLAS and kernels between": measure([lambda w=w, run=run: run(w) for w in model.sets])}
            if all(model.choose(name, m) for name in NAMES):
                times |= {"ours": chain(model, m), "ours, not chained": chain(model, m, False)}
            figures[f"{title} chain {m}"] = times
            text = "; ".join(f"{k} {us:.1f} ({model.layer_bytes / us / 1e6:.2f})" for k, us in times.items())
            print(f"chain of {m}: us a layer: {text}", flush=True)
        del model
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
