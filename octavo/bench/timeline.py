"""`--plot-timeline`: a page that shows when each request of a load test waited and when its tokens came.

A row is a request, from left to right is time: grey until its first token, then each gap between two chunks in the
colour of its length. The page is one file without scripts; a browser shows the figures of a row under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from octavo.core.errors import ConfigError

WAITING, FAILED = "#9aa0a6", "#5f2120"
COLOURS = ("#2e9e5b", "#e69f00", "#d1352b")  # below the first threshold, below the second, above
WIDTH, ROW, GAP, TOP = 1200, 12, 3, 24


def parse_thresholds(given: Sequence[str]) -> tuple[float, float]:
    """Two rising numbers of milliseconds, with a comma or a space between."""
    try:
        low, high = (float(part) for each in given for part in each.split(",") if part)
    except ValueError:
        low, high = 0.0, 0.0
    if not 0 < low < high < math.inf:
        raise ConfigError(
            f"timeline-itl-thresholds: {' '.join(given)!r} must be two rising numbers of milliseconds, such as 25,50"
        )
    return low, high


def write_timeline(result: dict[str, Any], path: Path, thresholds: tuple[float, float]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(result, thresholds), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the timeline cannot be written: {error}") from None


def page(result: dict[str, Any], thresholds: tuple[float, float]) -> str:
    """HTML of what `metrics.summarize` found."""
    starts = result["start_times"]
    order = sorted(range(len(starts)), key=lambda i: starts[i])
    first = min(starts, default=0.0)
    end = max((start + latency - first for start, latency in zip(starts, result["latencies"], strict=True)), default=0)
    scale = WIDTH / (end or 1.0)
    rows = [
        _row(result, i, TOP + place * (ROW + GAP), starts[i] - first, scale, thresholds)
        for place, i in enumerate(order)
    ]
    height = TOP + len(rows) * (ROW + GAP)
    low, high = (f"{value:g} ms" for value in thresholds)
    legend = zip(
        (WAITING, *COLOURS, FAILED),
        ("until the first token", f"gaps below {low}", f"below {high}", f"from {high}", "failed"),
        strict=True,
    )
    keys = " ".join(f'<b style="color:{colour}">&#9632;</b> {escape(text)}' for colour, text in legend)
    ticks = "".join(
        f'<text x="{share * WIDTH:.0f}" y="14" text-anchor="{anchor}">{share * end:.2f} s</text>'
        for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end"))
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Requests over time</title>'
        "<style>body{font:14px system-ui,sans-serif;margin:2em;color-scheme:light dark}"
        "svg{max-width:100%;height:auto}text{font-size:12px;fill:currentColor}</style>"
        f"<h1>{escape(str(result.get('model_id') or 'Requests'))}: {len(rows)} requests over time</h1><p>{keys}</p>"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="when tokens came">{ticks}{"".join(rows)}</svg>'
        "</html>\n"
    )


def _row(result: dict[str, Any], i: int, y: int, start: float, scale: float, thresholds: tuple[float, float]) -> str:
    def bar(begin: float, seconds: float, colour: str) -> str:
        width = max(seconds * scale, 0.2)
        return f'<rect x="{begin * scale:.1f}" y="{y}" width="{width:.1f}" height="{ROW}" fill="{colour}"/>'

    error, ttft, gaps = result["errors"][i], result["ttfts"][i], result["itls"][i]
    if error:
        told = f"request {i}: {error}"
        return f"<g><title>{escape(told)}</title>{bar(start, result['latencies'][i], FAILED)}</g>"
    bars, at = [bar(start, ttft, WAITING)], start + ttft
    kinds = [(sum(gap * 1000 >= limit for limit in thresholds), gap) for gap in gaps]
    for kind, run in groupby(kinds, key=lambda each: each[0]):
        seconds = sum(gap for _, gap in run)
        bars.append(bar(at, seconds, COLOURS[kind]))
        at += seconds
    told = (
        f"request {i}: {result['input_lens'][i]} tokens in, {result['output_lens'][i]} out, first after "
        f"{ttft * 1000:.1f} ms, longest gap {max(gaps, default=0.0) * 1000:.1f} ms"
    )
    return f"<g><title>{escape(told)}</title>{''.join(bars)}</g>"
