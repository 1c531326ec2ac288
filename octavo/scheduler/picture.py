"""Takes the picture that is shown to who watches: a few numpy calls, and a short loop over the rows that run."""

from __future__ import annotations

from itertools import islice

import numpy as np

from octavo.cache.manager import KVCacheManager
from octavo.core.picture import MAX_CELLS, MAX_LISTED, NOBODY, CacheMap, Pace, Picture, Sight
from octavo.core.plan import IntArray
from octavo.scheduler.rows import RowTable
from octavo.scheduler.scheduler import Scheduler
from octavo.scheduler.sequence import Sequence

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
        sight.blocks = int(cache.held[seq.row])
        cells = cache.table[seq.row, : min(sight.blocks, left)] // span
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
    held, used = pool.refs > 0, np.zeros(pool.num_blocks, np.int32)
    owner = np.full(pool.num_blocks, NOBODY, np.int16)
    place = np.arange(cache.table.shape[1], dtype=np.int32) * size
    for i in reversed(range(len(listed))):  # of those that share a block, the first in order is told
        row = listed[i]
        blocks = cache.table[row, : cache.held[row]]
        owner[blocks] = i
        tokens = np.clip(rows.computed[row] - place[: len(blocks)], 0, size)
        used[blocks] = np.maximum(used[blocks], tokens)
    span = _span(pool.num_blocks)
    starts = np.arange(0, pool.num_blocks, span)
    num_held = np.add.reduceat(held, starts, dtype=np.int32)
    num_cached = np.add.reduceat((pool.refs == 0) & pool.published, starts, dtype=np.int32)
    slots = np.maximum(num_held, 1) * size
    return CacheMap(
        span=span,
        cells=len(starts),
        held=num_held.astype("<u2").tobytes(),
        cached=num_cached.astype("<u2").tobytes(),
        withdrawn=np.add.reduceat(pool.quarantined, starts, dtype=np.int32).astype("<u2").tobytes(),
        holders=np.minimum(np.maximum.reduceat(pool.refs, starts), 255).astype(np.uint8).tobytes(),
        fill=(np.add.reduceat(used, starts) * 255 // slots).astype(np.uint8).tobytes(),
        owner=np.maximum.reduceat(owner, starts).astype("<i2").tobytes(),
    )
