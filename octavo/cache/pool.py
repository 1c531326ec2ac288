"""Blocks: who holds them, which are free, and which free ones still keep a prefix that may be hit.

A block is *held* (references > 0), *cached* (no references, but its KV is published under a hash) or *free*.
`take` hands out free blocks first and then evicts the cached ones that were released longest ago. All of it is
arrays, so a step's blocks are taken and released in a few numpy calls, however many rows need one.

The order of eviction is a queue of (block, stamp) in the order of release. A block that is held again before its
turn only gets a new stamp: its entry in the queue no longer matches and is skipped. So a hit costs nothing here,
and each entry is looked at once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from octavo.core.plan import IntArray


class BlockPool:
    def __init__(self, num_blocks: int, forget: Callable[[IntArray], None]) -> None:
        """`forget(blocks)` is called when cached blocks are evicted, before they are handed out."""
        self.num_blocks = num_blocks
        self._forget = forget
        self.refs = np.zeros(num_blocks, np.int32)
        self.published = np.zeros(num_blocks, np.bool_)
        self.quarantined = np.zeros(num_blocks, np.bool_)  # not to be used again; see `audit`
        self.num_quarantined = 0
        self._free = np.arange(num_blocks - 1, -1, -1, dtype=np.int32)  # a stack: low numbers go first
        self._num_free = num_blocks
        self.num_cached = 0
        # The queue of cached blocks. Twice the blocks, so that it is compacted once in num_blocks releases at most.
        self._queue = np.zeros(2 * num_blocks, np.int32)
        self._queue_stamps = np.zeros(2 * num_blocks, np.int64)
        self._head = self._tail = 0
        self._stamp = np.zeros(num_blocks, np.int64)  # 0: not in the queue
        self._clock = 0

    @property
    def available(self) -> int:
        """Blocks that `take` could hand out."""
        return self._num_free + self.num_cached

    @property
    def num_held(self) -> int:
        return self.num_blocks - self._num_free - self.num_cached - self.num_quarantined

    def take(self, count: int) -> IntArray:
        """`count` blocks with one reference each. The caller has checked `available`."""
        assert count <= self.available, "take() without a check of available"
        if count > self._num_free:
            self._evict(count - self._num_free)
        self._num_free -= count
        blocks = self._free[self._num_free : self._num_free + count][::-1].copy()
        self.refs[blocks] = 1
        return blocks

    def retain(self, blocks: IntArray) -> None:
        """One more reference to each of the (distinct) blocks; cached ones are held again."""
        idle = blocks[self.refs[blocks] == 0]
        self._stamp[idle] = 0
        self.num_cached -= len(idle)
        self.refs[blocks] += 1

    def release(self, blocks: IntArray) -> None:
        """One reference less to each of the (distinct) blocks, given in the order of their tokens."""
        self.refs[blocks] -= 1
        idle = blocks[self.refs[blocks] == 0]
        cached = self.published[idle]
        # The last block of a sequence goes first in the queue: a prefix is useless without its beginning.
        self._enqueue(idle[cached][::-1])
        self._push_free(idle[~cached])

    def publish(self, block: int) -> None:
        """The held block's content can be hit from now on; it is kept when nobody holds it."""
        self.published[block] = True

    def withdraw(self, blocks: IntArray) -> None:
        """Those of the (distinct) blocks that are published cannot be hit any more."""
        known = blocks[self.published[blocks]]
        self._forget(known)
        self.published[known] = False
        cached = known[self.refs[known] == 0]
        self._stamp[cached] = 0
        self.num_cached -= len(cached)
        self._push_free(cached)

    def audit(self, held: npt.NDArray[np.signedinteger]) -> IntArray:
        """Blocks whose state is not what it must be; `held[block]` counts the rows that hold it."""
        free = np.bincount(self._free[: self._num_free], minlength=self.num_blocks)
        cached = self._stamp > 0
        places = free + cached + (held > 0) + self.quarantined
        wrong = (places != 1) | (self.refs != held) & ~self.quarantined | cached & ~self.published
        found: IntArray = np.flatnonzero(wrong | (free > 0) & self.published).astype(np.int32)
        return found

    def quarantine(self, blocks: IntArray) -> None:
        """Nobody holds the blocks and nobody will again: their bookkeeping is wrong. All counters are made anew."""
        self._forget(blocks[self.published[blocks]])
        self.published[blocks] = False
        self.refs[blocks] = 0
        self._stamp[blocks] = 0
        self.quarantined[blocks] = True
        self.num_quarantined = int(self.quarantined.sum())
        free = np.unique(self._free[: self._num_free])[::-1]
        free = free[~self.quarantined[free]]
        self._num_free = len(free)
        self._free[: len(free)] = free
        self.num_cached = int((self._stamp > 0).sum())

    def _push_free(self, blocks: IntArray) -> None:
        self._free[self._num_free : self._num_free + len(blocks)] = blocks
        self._num_free += len(blocks)

    def _enqueue(self, blocks: IntArray) -> None:
        count = len(blocks)
        if count == 0:
            return
        if self._tail + count > len(self._queue):
            self._compact()
        stamps = np.arange(self._clock + 1, self._clock + 1 + count)
        self._clock += count
        self._queue[self._tail : self._tail + count] = blocks
        self._queue_stamps[self._tail : self._tail + count] = stamps
        self._stamp[blocks] = stamps
        self._tail += count
        self.num_cached += count

    def _compact(self) -> None:
        queue, stamps = self._queue[self._head : self._tail], self._queue_stamps[self._head : self._tail]
        live = self._stamp[queue] == stamps
        count = int(live.sum())
        self._queue[:count], self._queue_stamps[:count] = queue[live], stamps[live]
        self._head, self._tail = 0, count

    def _evict(self, count: int) -> None:
        while count:
            # Entries that no longer match are rare, so about `count` entries are enough.
            end = min(self._tail, self._head + count + 16)
            queue = self._queue[self._head : end]
            live = np.flatnonzero(self._stamp[queue] == self._queue_stamps[self._head : end])[:count]
            victims = queue[live]
            self._head = self._head + int(live[-1]) + 1 if len(live) == count else end
            self._forget(victims)
            self.published[victims] = False
            self._stamp[victims] = 0
            self.num_cached -= len(victims)
            self._push_free(victims)
            count -= len(victims)

    def check_integrity(self) -> None:
        free = self._free[: self._num_free]
        assert len(np.unique(free)) == len(free), "a block is free twice"
        assert (self.refs >= 0).all(), "negative reference count"
        assert (self.refs[free] == 0).all() and not self.published[free].any(), "a free block is in use"
        queued = self._stamp > 0
        assert int(queued.sum()) == self.num_cached, "cached blocks miscounted"
        assert (self.refs[queued] == 0).all() and self.published[queued].all(), "a cached block is held or unpublished"
        idle = (self.refs == 0) & ~self.quarantined
        assert int(idle.sum()) == self.available, "a block is lost"
        assert not self.quarantined[free].any() and not (self.quarantined & queued).any(), "a block left quarantine"
        entries, stamps = self._queue[self._head : self._tail], self._queue_stamps[self._head : self._tail]
        live = entries[self._stamp[entries] == stamps]
        assert np.array_equal(np.sort(live), np.flatnonzero(queued)), "the eviction queue and the stamps differ"
