"""Which kernels compute how many rows of which experts, and how they are launched.

What was measured is in tuned/DEVICE.json, written by `bench/moe.py --tune`: by "experts,inner size,hidden size", with
what weights are kept as behind a comma if it is codes, and then by the largest number of tokens that an entry is good
for. What is not there follows from rooflines: reading weights is all that counts while an expert has few rows, so each
is read once and blocks are as large as registers and shared memory let enough of them be under way.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from octavo.moe.base import Routing

TUNED = Path(__file__).parent / "tuned"


@dataclass(frozen=True, slots=True)
class Pairs:
    """A program some outputs of a (token, expert) pair."""

    rows: int = 4  # outputs of a program
    block: int = 512  # of the input, at a time
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True, slots=True)
class Tiles:
    """A program a tile of an expert's rows and some outputs."""

    tile: int  # rows
    rows: int = 64  # outputs of a program; of gate and of up as many each
    block: int = 128
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True, slots=True)
class Grouped:
    """torch's grouped product."""


Form = Pairs | Tiles | Grouped
KINDS: dict[str, type[Form]] = {"pairs": Pairs, "tiles": Tiles, "grouped": Grouped}


def shape_key(routing: Routing, inner: int, hidden: int, stored: str) -> str:
    return f"{routing.num_experts},{inner},{hidden}" + ("" if stored == "plain" else f",{stored}")


def choose(
    tokens: int, routing: Routing, inner: int, hidden: int, device: str, grouped: bool, stored: str = "plain"
) -> Form:
    """`grouped`: whether torch's product can be used. `stored`: plain, or the kind of codes."""
    for most, form in tuned(device).get(shape_key(routing, inner, hidden, stored), ()):
        if tokens <= most and (grouped or not isinstance(form, Grouped)):
            return form
    return by_roofline(tokens, routing, grouped, stored)


def by_roofline(tokens: int, routing: Routing, grouped: bool, stored: str = "plain") -> Form:
    if stored != "plain":
        return _for_codes(tokens, routing, grouped, stored)
    pairs = tokens * routing.top_k
    # Pairs that share an expert read it twice: with as many pairs as half the experts, a fifth of them do.
    if tokens == 1 or tokens <= 16 and 2 * pairs <= routing.num_experts:
        return Pairs()
    rows = pairs / routing.num_experts  # of an expert, on average
    if grouped and rows >= 48:
        return Grouped()
    if rows <= 12:
        return Tiles(16)
    if rows <= 48:
        return Tiles(32, block=64, stages=4)
    return Tiles(64, rows=128, block=64, warps=8)


def _for_codes(tokens: int, routing: Routing, grouped: bool, stored: str) -> Form:
    """Pairs make a float32 of each code: of 4 bits GPUs read more in a time than they can so convert. Decoding a layer
    pays once each expert has more than a hundred rows: then each tile of them would decode it again."""
    pairs, halves = tokens * routing.top_k, stored in ("int4", "mxfp4")
    if tokens == 1 or not halves and tokens <= 16 and 2 * pairs <= routing.num_experts:
        return Pairs()
    rows = pairs / routing.num_experts
    if grouped and rows >= 128:
        return Grouped()
    if rows <= 12:
        return Tiles(16, block=128, stages=4 if halves else 3)
    if rows <= 48:
        return Tiles(32, block=128, stages=3)
    return Tiles(128, rows=64, block=128, warps=8, stages=3)


def fit(form: Form, itemsize: int, room: int, of_weights: float | None = None, least: int = 32) -> Form:
    """With less under way at a time, if a program may have no more than `room` bytes of shared memory.

    `of_weights`: bytes of a weight, if not `itemsize`. `least`: a block.
    """
    of_weights = itemsize if of_weights is None else of_weights
    while isinstance(form, Tiles):
        if form.stages * form.block * (2 * form.rows * of_weights + form.tile * itemsize) <= room:
            break
        if form.stages > 2:
            form = replace(form, stages=form.stages - 1)
        elif form.block > least:
            form = replace(form, block=form.block // 2)
        elif form.rows > 16:
            form = replace(form, rows=form.rows // 2)
        else:
            break
    return form


@functools.cache
def tuned(device: str) -> dict[str, list[tuple[int, Form]]]:
    """The entries of a device, by shape; numbers of tokens ascend."""
    path = TUNED / f"{device.replace(' ', '_')}.json"
    if not path.is_file():
        return {}
    shapes: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))
    return {
        shape: sorted(((int(most), read(entry)) for most, entry in entries.items()), key=lambda found: found[0])
        for shape, entries in shapes.items()
    }


def read(entry: dict[str, Any]) -> Form:
    return KINDS[entry["kind"]](**{key: value for key, value in entry.items() if key != "kind"})


def write(form: Form) -> dict[str, Any]:
    kind = next(name for name, known in KINDS.items() if isinstance(form, known))
    return {"kind": kind, **asdict(form)}
