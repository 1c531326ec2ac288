"""Whether reasoning has spent its budget."""

from __future__ import annotations

import numpy as np

from octavo.scheduler.rows import RowTable

THINKING_OPENS = 8  # the last tokens of a prompt, among which it may begin the reasoning


def overdue(table: RowTable, row: int) -> bool:
    """True if the row's reasoning is to be ended now. If not, `think_until` says when to ask again, if ever."""
    seq = table.owned(row)
    begin, end = seq.request.thinking
    budget = seq.request.params.thinking_token_budget or 0
    length, start = int(table.length[row]), max(0, seq.prompt_len - THINKING_OPENS)
    known = table.tokens[row, start:length]
    # Only what begins within the budget counts: so a sequence that was preempted in between is judged alike.
    begun = np.flatnonzero(known[: seq.prompt_len + budget - start] == begin)
    if not len(begun) or (known[begun[0] :] == end).any() or length + 1 >= table.limit[row]:
        table.stop_thinking(row)
        return False
    left = budget + max(seq.prompt_len, start + int(begun[0]) + 1) - length
    table.think_until[row] += max(0, left)
    return left <= 0
