"""What grammars allow: a bit for each token of each row, written before every step that samples the row.

A forbidden token gets -inf before anything else is looked at, so nothing can choose it; NaN and +inf become NaN,
because a row with one must be found out. The masks live on the device by row, so that a captured step finds them.

Suffixes: R rows, S sampled rows, G rows worked on at once, M masks, W words of 32 tokens, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from octavo.core.plan import IntArray, RowJoin
from octavo.sampling.state import upload

# Tokens worked on at once: on a CPU what stays in a core's cache, on a GPU what bounds scratch memory.
_CHUNK_CPU = 1 << 17
_CHUNK_GPU = 1 << 23


class GrammarMask:
    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self.device = device
        self.rows = np.zeros(max_rows + 1, np.bool_)  # those that have a mask; the last one is the spare row
        self._masks_RW: Tensor | None = None  # made with the first grammar; all ones where there is none
        self._chunk = max(1, (_CHUNK_CPU if device.type == "cpu" else _CHUNK_GPU) // vocab_size)
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        self._bias = upload(np.where(bits, 0, -np.inf).astype(np.float32), device)  # of the 8 tokens of a byte

    def join(self, join: RowJoin) -> None:
        if self.rows[join.row] and not join.masked and self._masks_RW is not None:
            self._masks_RW[join.row] = -1
        self.rows[join.row] = join.masked
        if join.masked and self._masks_RW is None:
            words = -(-self.vocab_size // 32)
            self._masks_RW = torch.full((len(self.rows), words), -1, dtype=torch.int32, device=self.device)

    def write(self, rows_M: IntArray, masks_MW: IntArray) -> None:
        """The masks of this step, for rows that have joined with one."""
        assert self._masks_RW is not None and self.rows[rows_M].all(), "a row without a grammar gets a mask"
        rows = upload(rows_M.astype(np.int64), self.device)
        self._masks_RW.index_copy_(0, rows, upload(np.ascontiguousarray(masks_MW), self.device))

    def uses(self, rows_S: IntArray) -> bool:
        return bool(self.rows[rows_S].any())

    def hide(self, logits_SV: Tensor, rows_S: Tensor, rows_host: IntArray) -> HiddenRows:
        """Masks the logits in place, until they are shown again."""
        at = np.flatnonzero(self.rows[rows_host])
        if len(at) == len(rows_host):
            hidden = HiddenRows(None, logits_SV.clone())
            self.apply(logits_SV, rows_S)
            return hidden
        at_M = upload(at, self.device)
        hidden = HiddenRows(at_M, logits_SV[at_M])
        masked_MV = hidden.old_MV.clone()
        self.apply(masked_MV, rows_S[at_M])
        logits_SV.index_copy_(0, at_M, masked_MV)
        return hidden

    def apply(self, logits_SV: Tensor, rows_S: Tensor) -> None:
        """Masks the logits of any rows in place, with launches alone."""
        assert self._masks_RW is not None
        for start in range(0, len(rows_S), self._chunk):
            part = slice(start, start + self._chunk)
            bytes_GB = self._masks_RW[rows_S[part]].view(torch.uint8)
            bias_GV = functional.embedding(bytes_GB.int(), self._bias).view(len(bytes_GB), -1)
            logits_SV[part] += bias_GV[:, : self.vocab_size]


class HiddenRows:
    """The logits of masked rows as they were; `at_M` is None where all rows are."""

    def __init__(self, at_M: Tensor | None, old_MV: Tensor) -> None:
        self.at_M, self.old_MV = at_M, old_MV

    def show(self, logits_SV: Tensor) -> None:
        if self.at_M is None:
            logits_SV.copy_(self.old_MV)
        else:
            logits_SV.index_copy_(0, self.at_M, self.old_MV)
