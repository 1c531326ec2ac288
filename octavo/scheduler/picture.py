"""Takes the picture that is shown to who watches: a few numpy calls, and a short loop over the rows that run."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from octavo.cache.manager import KVCacheManager
from octavo.core.picture import MAX_CELLS, MAX_LISTED, NOBODY, CacheMap, Pace, Picture, Sight
from octavo.core.plan import IntArray
from octavo.scheduler.rows import RowTable
from octavo.scheduler.sequence import Sequence

if TYPE_CHECKING:
    from octavo.scheduler.scheduler import Scheduler

MAX_PLACES = 1 << 15  # cells that are told of all requests together


def take_picture(scheduler: Scheduler, pace: Pace) -> Picture:
    cache, rows, pool = scheduler.cache, scheduler.rows, scheduler.cache.pool
    active = [seq for seq in rows.owner if seq is not None]
    active.sort(key=lambda seq: seq.key)
    listed = active[:MAX_LISTED]
    return Picture(
        num_running=len(active),
        num_waiting=len(scheduler.waiting),
        free_blocks=pool.available - pool.num_cached,
        held_blocks=pool.num_held,
        cached_blocks=pool.num_cached,
        withdrawn_blocks=pool.num_quarantined,
        block_size=cache.block_size,
        pace=pace,
        running=_sights(listed, cache, rows),
        waiting=[_sight(seq, len(seq.tokens)) for seq in islice(scheduler.waiting, MAX_LISTED)],
        map=_map(cache, rows, np.array([seq.row for seq in listed], np.int32)),
    )


def _sight(seq: Sequence, known: int) -> Sight:
    request = seq.request
    return Sight(
        uid=seq.uid,
        id=request.label,
        key=request.tenant,
        prompt_tokens=seq.prompt_len,
        cached_tokens=seq.num_cached,
        computed_tokens=0,
        known_tokens=known,
        max_tokens=request.max_tokens,
        preemptions=seq.preemptions,
    )


def _sights(listed: list[Sequence], cache: KVCacheManager, rows: RowTable) -> list[Sight]:
    span, left, found = _span(cache.pool.num_blocks), MAX_PLACES, []
    for seq in listed:
        sight = _sight(seq, int(rows.length[seq.row]))
        sight.computed_tokens = int(rows.computed[seq.row])
        pages = cache.pages(seq.row)
        sight.blocks = len(pages)
        cells = pages[:left] // span
        if span > 1:
            cells = np.unique(cells)
        left -= len(cells)
        sight.cells = cells.astype("<u2").tobytes()
        found.append(sight)
    return found


def _span(num_blocks: int) -> int:
    return -(-num_blocks // MAX_CELLS)


def _map(cache: KVCacheManager, rows: RowTable, listed: IntArray) -> CacheMap:
    """`listed` are the rows in the order in which the picture shows their requests."""
    pool, size = cache.pool, cache.block_size
    used = np.zeros(pool.num_blocks, np.int32)
    owner = np.full(pool.num_blocks, NOBODY, np.int16)
    order = listed[::-1]  # of those that share a block, the first in order is told: it is written last
    for group, table in enumerate(cache.tables):
        begin, end = cache.spans(order, group)
        place = np.arange(int(end.max(initial=0)))
        there = (place >= begin[:, None]) & (place < end[:, None])
        blocks = table[order, : len(place)][there]
        owner[blocks] = np.repeat(np.arange(len(order))[::-1], end - begin)
        used[blocks] = np.clip(rows.computed[order][:, None] - place * size, 0, size)[there]
    span = _span(pool.num_blocks)
    num_held = _cells(pool.refs > 0, span).sum(1)
    return CacheMap(
        span=span,
        cells=len(num_held),
        held=num_held.astype("<u2").tobytes(),
        cached=_cells((pool.refs == 0) & pool.published, span).sum(1).astype("<u2").tobytes(),
        withdrawn=_cells(pool.quarantined, span).sum(1).astype("<u2").tobytes(),
        holders=np.minimum(_cells(pool.refs, span).max(1), 255).astype(np.uint8).tobytes(),
        fill=(_cells(used, span).sum(1) * 255 // (np.maximum(num_held, 1) * size)).astype(np.uint8).tobytes(),
        owner=_cells(owner, span, NOBODY).max(1).astype("<i2").tobytes(),
    )


def _cells(values: npt.NDArray[Any], span: int, rest: int = 0) -> npt.NDArray[Any]:
    """One row for each cell; the last is filled up."""
    cells = -(-len(values) // span)
    found = np.full(cells * span, rest, values.dtype)
    found[: len(values)] = values
    return found.reshape(cells, span)
