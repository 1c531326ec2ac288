"""Writes down which rows a step computes, as the arrays of a plan."""

from __future__ import annotations

import numpy as np

from octavo.core.plan import NO_INTS, IntArray, StepPlan
from octavo.scheduler.rows import RowTable

Chunk = tuple[int, int, int]  # row, start, count


def describe_decodes(table: RowTable, rows: IntArray, starts: IntArray, last: StepPlan | None) -> StepPlan:
    """One token for each of the rows. `last`: the plan before, if this may be the same step but one token later."""
    # The scheduler replaces its array of rows whenever one comes or goes, so the same array means the same owners.
    if last is not None and last.rows_N is rows:
        return StepPlan(
            rows, starts, last.counts_N, last.epochs_N, len(rows), NO_INTS, NO_INTS, last.sampled_S, steady=True
        )
    counts, sampled = np.ones(len(rows), np.int32), np.arange(len(rows), dtype=np.int32)
    return StepPlan(rows, starts, counts, table.epoch[rows], len(rows), NO_INTS, NO_INTS, sampled, steady=False)


def describe_mixed(table: RowTable, decodes: IntArray, starts: IntArray, chunks: list[Chunk]) -> StepPlan:
    """One token for each of the rows that decode, and chunks of other rows' known tokens."""
    # Chunks of one token go first: attention treats them like decodes.
    chunks.sort(key=lambda chunk: chunk[2] != 1)
    new_rows, new_starts, new_counts = np.array(chunks, np.int32).T
    rows, starts = np.concatenate((decodes, new_rows)), np.concatenate((starts, new_starts))
    counts = np.concatenate((np.ones(len(decodes), np.int32), new_counts))
    length = table.length[new_rows]
    tokens = np.concatenate([table.tokens[row, start : start + count] for row, start, count in chunks])
    # The token that follows each one; unknown after the last known token, which is sampled from.
    following = _spans(new_starts, new_counts) + 1
    inside = following < np.repeat(length, new_counts)
    owners = np.repeat(new_rows, new_counts)
    targets = np.where(inside, table.tokens[owners, np.where(inside, following, 0)], np.int32(-1))
    ends = np.concatenate((np.ones(len(decodes), np.bool_), new_starts + new_counts == length))
    sampled = np.flatnonzero(ends).astype(np.int32)
    return StepPlan(rows, starts, counts, table.epoch[rows], len(decodes), tokens, targets, sampled, steady=False)


def _spans(starts: IntArray, counts: IntArray) -> IntArray:
    """start, start + 1, … start + count - 1 of each pair, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1], dtype=np.int32) - np.repeat(ends - counts - starts, counts).astype(np.int32)
