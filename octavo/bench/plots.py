"""PNG files of results: latency against load, and where the time of a step goes. matplotlib is an extra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octavo.bench.anatomy import HOST, KINDS
from octavo.core.errors import ConfigError

CURVES = (("ttft", "time to first token"), ("tpot", "time per output token"), ("e2el", "whole answer"))
COLOURS = {
    "schedule": "#4c72b0",
    "upload": "#64b5cd",
    "graph": "#8172b3",
    "forward": "#55a868",
    "sample": "#ccb974",
    "update": "#c44e52",
    "wait": "#dddddd",
    "GPU": "#333333",
}


def check_matplotlib() -> None:
    """Before anything is measured: a plot that cannot be drawn is said at once."""
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("--plot needs matplotlib: pip install 'octavo[bench]'") from None
    matplotlib.use("Agg")


def plot_results(results: Sequence[dict[str, Any]], path: str) -> None:
    """Of result files: whichever plot they have the figures for."""
    check_matplotlib()
    if results and all("request_throughput" in result for result in results):
        plot_load(results, path)
    elif results and all("batch_size" in result for result in results):
        plot_batches(results, path)
    elif len(results) == 1 and "steps" in results[0]:
        plot_anatomy(results[0]["steps"], {}, results[0].get("device", ""), path)
    else:
        raise ConfigError(
            "these results have no common plot: give some of `serve`, some of `latency`, or one `throughput`"
        )


def plot_load(results: Sequence[dict[str, Any]], path: str) -> None:
    """Medians and highest percentiles of latencies over the requests a second that were answered."""
    from matplotlib import pyplot

    results = sorted(results, key=lambda result: result["request_throughput"])
    load = [result["request_throughput"] for result in results]
    shown = [(name, label) for name, label in CURVES if any(f"median_{name}_ms" in result for result in results)]
    if not shown:
        raise ConfigError("these results have no latencies to plot: see --percentile-metrics")
    figure, axes = pyplot.subplots(1, len(shown), figsize=(4.6 * len(shown), 3.8), squeeze=False)
    for axis, (name, label) in zip(axes[0], shown, strict=True):
        marks = sorted({key for result in results for key in result if key[0] == "p" and key.endswith(f"_{name}_ms")})
        for key in (f"median_{name}_ms", *marks):
            word = key.split("_")[0]
            axis.plot(load, [result.get(key, float("nan")) for result in results], marker="o", label=word)
        axis.set(xlabel="requests answered per second", ylabel=f"{label} (ms)", ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(f"{results[0].get('model_id') or ''}: latency against load")
    _save(figure, path)


def plot_batches(results: Sequence[dict[str, Any]], path: str) -> None:
    """The decode step over the batch, and its parts on the host."""
    from matplotlib import pyplot

    results = sorted(results, key=lambda result: result["batch_size"])
    sizes = [result["batch_size"] for result in results]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8))
    steps = [
        result["steps"].get("decode", {"median_ms": float("nan"), "host_ms": {}, "gpu_ms": None}) for result in results
    ]
    left.plot(sizes, [step["median_ms"] for step in steps], marker="o", label="step")
    if any(step["gpu_ms"] is not None for step in steps):
        left.plot(sizes, [step["gpu_ms"] for step in steps], marker="o", label="GPU")
    left.plot(
        sizes,
        [result["avg_latency"] * 1e3 / result["output_len"] for result in results],
        marker=".",
        label="mean of a token",
    )
    left.set(xlabel="batch", ylabel="ms", ylim=(0, None), title="decode step")
    left.legend()
    bottom = [0.0] * len(sizes)
    for name in HOST:
        heights = [step["host_ms"].get(name, 0.0) for step in steps]
        if any(heights):
            right.bar([str(size) for size in sizes], heights, bottom=bottom, label=name, color=COLOURS[name])
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    right.set(xlabel="batch", ylabel="ms", title="host, a decode step")
    right.legend()
    _save(figure, path)


def plot_anatomy(steps: dict[str, dict[str, Any]], timeline: dict[str, list[float]], device: str, path: str) -> None:
    """Bars: the phases of the host, then the GPU, for each kind of step. Dots: every step as the run went on."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2 if timeline else 1, figsize=(12 if timeline else 7, 3.8), squeeze=False)
    left = axes[0][0]
    labels: list[str] = []
    named: set[str] = set()
    for kind, found in steps.items():
        host = {name: found["host_ms"].get(name, 0.0) for name in (*HOST, "wait")}
        rows = [("host", host)]
        if found["gpu_ms"] is not None:
            rows.append(("GPU", {"GPU": found["gpu_ms"]}))
        for row, parts in rows:
            begin = 0.0
            for name, width in parts.items():
                label = None if name in named or not width else name
                left.barh(len(labels), width, left=begin, color=COLOURS[name], label=label)
                named |= {name} if width else set()
                begin += width
            labels.append(f"{KINDS[kind].removeprefix('Steps ')}\n{row}")
    left.set_yticks(range(len(labels)), labels)
    left.invert_yaxis()
    left.set(xlabel="ms a step (mean)")
    left.legend(fontsize="small")
    if timeline:
        right = axes[0][1]
        for kind, value in (("decode", 1.0), ("prompts", 0.0)):
            mine = [i for i, decode in enumerate(timeline["decode"]) if decode == value]
            x, y = ([timeline[name][i] for i in mine] for name in ("ended", "ms"))
            right.plot(x, y, ".", markersize=3, label=KINDS[kind].removeprefix("Steps "))
        right.set(xlabel="s", ylabel="ms a step", ylim=(0, None))
        right.legend(fontsize="small")
    figure.suptitle(f"A step's anatomy{', ' + device if device else ''}")
    _save(figure, path)


def plot_lengths(result: dict[str, Any], path: str) -> None:
    """How long prompts and answers were."""
    from matplotlib import pyplot

    ins, outs = result["input_lens"], result["output_lens"]
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6))
    both = [a + b for a, b in zip(ins, outs, strict=True)]
    for axis, values, label in zip(axes, (ins, outs, both), ("prompt", "answer", "both"), strict=True):
        axis.hist(values, bins=40, color=COLOURS["schedule"])
        axis.set(xlabel=f"tokens: {label}", ylabel="requests")
    figure.suptitle(f"{result.get('model_id') or ''}: lengths of {len(ins)} requests")
    _save(figure, path)


def _save(figure: Any, path: str) -> None:
    from matplotlib import pyplot

    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.tight_layout()
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise ConfigError(f"the plot cannot be written: {error}") from None
    finally:
        pyplot.close(figure)
