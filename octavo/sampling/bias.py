"""Features that favour or forbid tokens: min_tokens, banned tokens, allowed_token_ids, logit_bias.

Two strengths of «no». A token that is not allowed gets -inf and can never be chosen. A stop id before min_tokens, or
the last token of a bad word, gets `LEAST`, a finite number below any logit: if nothing else is allowed it is still
chosen, so that a request which forbids everything ends in some token and not in an error.

A NaN or +inf stays what it is under either, because a row with one must be found out.

Suffixes: S sampled rows, G rows of a group, V vocabulary, W width of a slot.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from octavo.core.plan import RowJoin
from octavo.sampling import blocks
from octavo.sampling.state import Edit, Int, RowTable, Selection, Slots, fill, grown


def least(dtype: torch.dtype) -> float:
    """Below any logit, and still finite when divided by the smallest temperature."""
    return max(-1e30, torch.finfo(dtype).min / 2)


class Hidden:
    """Logits that are masked in place, and can be shown again for those who report the model's own distribution."""

    def __init__(self, logits_SV: Tensor, rows: Tensor, tokens: Tensor, where: Tensor | None = None) -> None:
        self._at = (rows, tokens)
        self._old = logits_SV[self._at]
        floor = least(logits_SV.dtype)
        hide = (self._old < torch.inf) if where is None else (self._old < torch.inf) & where
        logits_SV[self._at] = torch.where(hide, self._old.clamp(max=floor), self._old)

    def show(self, logits_SV: Tensor) -> None:
        logits_SV[self._at] = self._old


class MinTokens:
    """No stop id before min_tokens. It works on the model's logits themselves, since it changes a few numbers only:
    greedy rows with min_tokens need no copy of theirs."""

    def __init__(self, table: RowTable) -> None:
        self.table = table
        self.slots = Slots()
        self.ids = torch.zeros(1, 4, dtype=torch.int64, device=table.device)

    def join(self, join: RowJoin) -> None:
        least_tokens = join.params.min_tokens
        slot = self.slots.assign(join.row, bool(least_tokens and join.stop_ids))
        self.table.ints[join.row, Int.STOPS_SLOT] = slot
        if slot:
            self.table.ints[join.row, Int.MIN_END] = join.prompt_len + least_tokens
            self.ids = grown(self.ids, self.slots.count, len(join.stop_ids))
            # Writing one value twice is harmless, so a slot is filled up with an id that is in it.
            fill(self.ids[slot], np.asarray(join.stop_ids), join.stop_ids[0])

    def hide(self, logits_SV: Tensor, positions_S: Tensor, rows: Selection) -> Hidden:
        index = torch.arange(len(positions_S), device=logits_SV.device)[:, None]
        early = positions_S < rows.int(Int.MIN_END)  # never in rows with the neutral slot
        return Hidden(logits_SV, index, self.ids[rows.int(Int.STOPS_SLOT)], early[:, None])


class AllowedTokens(Edit):
    slot = Int.ALLOWED_SLOT

    def __init__(self, vocab_size: int, table: RowTable) -> None:
        super().__init__(vocab_size, table)
        self.forbidden = torch.zeros(1, 0, dtype=torch.bool, device=self.device)  # as wide as V once it is used

    def join(self, join: RowJoin) -> None:
        allowed = join.params.allowed_token_ids
        slot = self.assign(join.row, allowed is not None)
        if allowed is not None:
            self.forbidden = grown(self.forbidden, self.slots.count, self.vocab_size)
            forbidden = np.ones(self.vocab_size, np.bool_)
            forbidden[allowed] = False
            fill(self.forbidden[slot], forbidden)

    def apply(self, logits_GV: Tensor, rows: Selection) -> None:
        bad_G1 = blocks.not_finite(logits_GV.amax(-1, keepdim=True))
        logits_GV.masked_fill_(self.forbidden[rows.int(self.slot)] & ~bad_G1, -torch.inf)


class LogitBias(Edit):
    slot = Int.BIAS_SLOT

    def __init__(self, vocab_size: int, table: RowTable) -> None:
        super().__init__(vocab_size, table)
        self.ids = torch.zeros(1, 16, dtype=torch.int64, device=self.device)
        self.values = torch.zeros(1, 16, dtype=torch.float32, device=self.device)

    def join(self, join: RowJoin) -> None:
        bias = join.params.logit_bias
        slot = self.assign(join.row, bool(bias))
        if bias:
            self.ids = grown(self.ids, self.slots.count, len(bias))
            self.values = grown(self.values, self.slots.count, len(bias))
            fill(self.ids[slot], np.fromiter(bias.keys(), np.int64))
            fill(self.values[slot], np.fromiter(bias.values(), np.float32))

    def apply(self, logits_GV: Tensor, rows: Selection) -> None:
        slots_G = rows.int(self.slot)
        logits_GV.scatter_add_(1, self.ids[slots_G], self.values[slots_G])
