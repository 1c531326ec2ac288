"""Penalties on tokens that the row has seen: repetition (prompt and answer), frequency and presence (answer only).

A penalty touches only tokens that were seen, so the cost is that of the context, not of the vocabulary: each row has a
list of them, and what to do about a token is read from its count. The list may name a token twice, and is filled up
with token 0: each entry computes the new logit from the same old one, and writing it twice changes nothing.

A join rebuilds both from `RowJoin.tokens`, so that a preempted row goes on as it was. From then on they are kept up to
date on the device; the host knows only how long the lists are at most.

Suffixes: G rows of a group, P pool slots, V vocabulary, W width of the lists.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from octavo.core.plan import RowJoin
from octavo.sampling.state import Edit, Int, Real, RowTable, Selection, fill, grown, upload


class Penalties(Edit):
    slot = Int.SEEN_SLOT

    def __init__(self, vocab_size: int, table: RowTable) -> None:
        super().__init__(vocab_size, table)
        self.seen_PW = torch.zeros(1, 256, dtype=torch.int64, device=self.device)
        # Bit 0: in the prompt. The bits above it: times generated.
        self.counts_PV = torch.zeros(1, 0, dtype=torch.int32, device=self.device)
        self.lengths_P = np.zeros(len(table.ints) + 1, np.int64)  # of the lists, on the host

    def join(self, join: RowJoin) -> None:
        params = join.params
        reals = self.table.reals[join.row]
        reals[Real.REPETITION] = params.repetition_penalty
        reals[Real.FREQUENCY] = params.frequency_penalty
        reals[Real.PRESENCE] = params.presence_penalty
        neutral = params.repetition_penalty == 1 and params.frequency_penalty == 0 and params.presence_penalty == 0
        slot = self.assign(join.row, not neutral)
        if not slot:
            return
        counts = 2 * np.bincount(join.tokens[join.prompt_len :], minlength=self.vocab_size)
        counts[join.tokens[: join.prompt_len]] += 1  # buffered: once for each token, however often it occurs
        seen = np.flatnonzero(counts)
        self.seen_PW = grown(self.seen_PW, self.slots.count, len(seen) + 1)
        self.counts_PV = grown(self.counts_PV, self.slots.count, self.vocab_size)
        fill(self.seen_PW[slot], seen)
        self.counts_PV[slot].zero_().index_copy_(
            0, upload(seen, self.device), upload(counts[seen].astype(np.int32), self.device)
        )
        self.lengths_P[slot] = len(seen)
        self.table.ints[join.row, Int.SEEN_SHIFT] = len(seen) - len(join.tokens)

    def _at(self, slots_G: Tensor, tokens: Tensor) -> Tensor:
        """Indices into the counts laid flat."""
        return slots_G[:, None] * self.vocab_size + tokens

    def apply(self, logits_GV: Tensor, rows: Selection) -> None:
        slots_G = rows.int(self.slot)
        width = int(self.lengths_P[rows.host_ints[:, self.slot]].max())
        seen_GW = self.seen_PW[:, :width].index_select(0, slots_G)
        counts_GW = self.counts_PV.view(-1)[self._at(slots_G, seen_GW)]
        times_GW = counts_GW >> 1
        old_GW = logits_GV.gather(1, seen_GW)
        repetition_G1 = rows.real(Real.REPETITION)
        new_GW = torch.where(old_GW > 0, old_GW / repetition_G1, old_GW * repetition_G1)
        new_GW -= rows.real(Real.FREQUENCY) * times_GW + rows.real(Real.PRESENCE) * (times_GW > 0)
        logits_GV.scatter_(1, seen_GW, torch.where(counts_GW > 0, new_GW, old_GW))

    def observe(self, tokens_G: Tensor, positions_G: Tensor, rows: Selection) -> None:
        """Token -1 (a row that failed) counts as token 0: the row has no use for its counts any more."""
        host_slots = rows.host_ints[:, self.slot]
        self.lengths_P[host_slots] += 1
        self.lengths_P[0] = 0
        self.seen_PW = grown(self.seen_PW, 1, int(self.lengths_P[host_slots].max()))
        slots_G = rows.int(self.slot)
        token_G1 = tokens_G.clamp(min=0)[:, None]
        # Rows of the neutral slot write what they like there: no penalty of theirs reads it.
        place_G = torch.where(slots_G > 0, positions_G + rows.int(Int.SEEN_SHIFT), 0)
        self.seen_PW[slots_G, place_G] = token_G1.squeeze(1)
        self.counts_PV.view(-1)[self._at(slots_G, token_G1).squeeze(1)] += 2
