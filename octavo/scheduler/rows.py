"""What the scheduler knows of each running sequence, as arrays indexed by row.

A sequence owns a row from admission to its end. A steady decode step reads and writes these arrays in a handful of
numpy calls and touches no Python object of any sequence.
"""

from __future__ import annotations

import numpy as np

from octavo.core.plan import IntArray
from octavo.scheduler.sequence import Sequence

NEVER = np.iinfo(np.int32).max


class RowTable:
    def __init__(self, max_rows: int, capacity: int) -> None:
        self.max_rows = max_rows
        # Pages of memory are touched as sequences grow, so the room for long ones costs nothing until then.
        self.tokens = np.empty((max_rows, capacity), np.int32)
        self.length = np.zeros(max_rows, np.int32)  # tokens known here: the prompt and what has come back
        self.computed = np.zeros(max_rows, np.int32)  # tokens whose KV is computed, counting steps under way
        self.written = np.zeros(max_rows, np.int32)  # the same, counting only steps that ended
        self.limit = np.zeros(max_rows, np.int32)  # the sequence ends at this length
        self.minimum = np.zeros(max_rows, np.int32)  # stop ids count from this length on
        self.stop_ids = np.full((max_rows, 4), -1, np.int32)
        self.epoch = np.zeros(max_rows, np.int32)  # changes with the owner
        self.uid = np.zeros(max_rows, np.int64)
        self.stream = np.zeros(max_rows, np.bool_)
        self.lockstep = np.zeros(max_rows, np.bool_)  # planned only when its last token is known here
        self.num_lockstep = 0
        self.masked = np.zeros(max_rows, np.bool_)  # a grammar says what may be sampled
        self.awaits_mask = np.zeros(max_rows, np.bool_)  # … and it is not known yet: the row is not sampled
        self.think_until = np.full(max_rows, NEVER, np.int32)  # from this length on reasoning is ended
        self.num_thinking = 0
        self.owner: list[Sequence | None] = [None] * max_rows
        self._free = list(range(max_rows - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_active(self) -> int:
        return self.max_rows - len(self._free)

    def assign(self, seq: Sequence, computed: int) -> int:
        """A row for the sequence, whose first `computed` tokens are in the cache."""
        row = self._free.pop()
        params, length = seq.request.params, len(seq.tokens)
        self.tokens[row, :length] = seq.tokens
        self.length[row] = length
        self.computed[row] = self.written[row] = computed
        self.limit[row] = seq.limit
        self.minimum[row] = seq.prompt_len + params.min_tokens
        self.uid[row] = seq.uid
        self.stream[row] = seq.request.stream
        self.masked[row] = self.awaits_mask[row] = bool(seq.request.grammar)
        self.lockstep[row] = bool(seq.request.bad_sequences or seq.request.grammar)
        self.num_lockstep += int(self.lockstep[row])
        if params.thinking_token_budget is not None:
            self.think_until[row] = min(seq.prompt_len + params.thinking_token_budget, NEVER - 1)
            self.num_thinking += 1
        self._set_stop_ids(row, seq.request.stop_ids)
        self.owner[row] = seq
        seq.row = row
        return row

    def _set_stop_ids(self, row: int, ids: list[int]) -> None:
        if len(ids) > self.stop_ids.shape[1]:
            wider = np.full((self.max_rows, len(ids)), -1, np.int32)
            wider[:, : self.stop_ids.shape[1]] = self.stop_ids
            self.stop_ids = wider
        self.stop_ids[row] = -1
        self.stop_ids[row, : len(ids)] = ids

    def stop_thinking(self, row: int) -> None:
        """The row's reasoning is over, or has no budget."""
        self.num_thinking -= int(self.think_until[row] != NEVER)
        self.think_until[row] = NEVER

    def vacate(self, row: int) -> Sequence:
        seq = self.owner[row]
        assert seq is not None, "the row has no owner"
        self.owner[row] = None
        self.epoch[row] += 1
        self.computed[row] = self.written[row] = 0
        self.num_lockstep -= int(self.lockstep[row])
        self.lockstep[row] = self.masked[row] = self.awaits_mask[row] = False
        self.stop_thinking(row)
        seq.row = -1
        self._free.append(row)
        return seq

    def owned(self, row: int) -> Sequence:
        seq = self.owner[row]
        assert seq is not None, "the row has no owner"
        return seq

    def known(self, row: int) -> IntArray:
        """A copy of the row's tokens that have come back."""
        return self.tokens[row, : self.length[row]].copy()

    def check_integrity(self) -> None:
        free = set(self._free)
        assert self.num_lockstep == self.lockstep.sum(), "rows in lockstep miscounted"
        assert not (self.masked & ~self.lockstep).any(), "a row with a grammar is not in lockstep"
        assert not (self.awaits_mask & ~self.masked).any(), "a row without a grammar awaits a mask"
        assert self.num_thinking == (self.think_until != NEVER).sum(), "rows that think miscounted"
        assert len(free) == len(self._free), "a row is free twice"
        for row, seq in enumerate(self.owner):
            assert (seq is None) == (row in free), "a row is lost, or owned while free"
            if seq is None:
                assert self.computed[row] == 0, "a free row counts computed tokens"
                continue
            assert seq.row == row and self.uid[row] == seq.uid, "row and owner disagree"
            assert self.written[row] <= self.computed[row] <= self.length[row] + 1, "a row computes what it cannot know"
            assert self.length[row] <= self.limit[row], "a row is longer than its limit"
