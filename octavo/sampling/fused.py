"""The sampler on a GPU: state that kernels read by row, and which of them a batch needs.

The kernels (`octavo.kernels.sampling`) read everything from the tables and from memory whose addresses are in the
tables. A row with penalties owns 2 bytes a token of the vocabulary, a row with allowed_token_ids a bit, and one with
logit_bias or min_tokens 12 bytes an entry, from the join of a sequence to that of the row's next one. So memory
follows use, nothing moves while it may be read, and a captured step finds the rows of any later batch.

An order is kept by the stream: what a join frees is used again only behind the steps that were queued before it.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np
import torch
from torch import Tensor

from octavo.core.plan import IntArray, RowJoin
from octavo.sampling.bias import least
from octavo.sampling.state import Int, Mode, Real, RowTable, upload

# What a row needs, as bits. The first three name the kernels of a batch.
SAMPLED = 1
TOP_K = 2
EDITED = 4
LOGPROBS = 8
KERNELS = SAMPLED | TOP_K | EDITED


def fused_for(vocab_size: int, table: RowTable) -> Fused | None:
    """None where there is no GPU, or no Triton for it."""
    if table.device.type != "cuda":
        return None
    try:
        return Fused(vocab_size, table)
    except ImportError:
        return None


class Fused:
    def __init__(self, vocab_size: int, table: RowTable) -> None:
        self.kernels = import_module("octavo.kernels.sampling")
        self.vocab_size = vocab_size
        self.table = table
        self.needs = np.zeros(len(table.ints), np.uint8)
        self._owned: dict[int, list[Tensor]] = {}

    def join(self, join: RowJoin, mode: Mode, candidates: int) -> None:
        """The numbers of the row are in the table already, but for those that only the kernels read."""
        row, params = join.row, join.params
        ints = self.table.ints[row]
        ints[Int.MODE] = mode
        ints[Int.CANDIDATES] = candidates
        self._owned[row] = []
        edits = [self._count(join), self._forbid(join), self._list(join)]
        needs = SAMPLED if mode is not Mode.GREEDY else 0
        needs |= TOP_K if mode is Mode.TOP_K else 0
        needs |= EDITED if any(edits) else 0
        needs |= LOGPROBS if params.logprobs is not None else 0
        self.needs[row] = needs

    def needs_of(self, rows: IntArray) -> int:
        return int(np.bitwise_or.reduce(self.needs[rows]))

    def choose(self, needs: int, logits_SV: Tensor, rows_S: Tensor, positions_S: Tensor) -> Tensor:
        tokens_S: Tensor = self.kernels.choose(
            logits_SV,
            rows_S,
            positions_S,
            self.table.reals_R,
            self.table.ints_R,
            self.kernels.Needs(bool(needs & SAMPLED), bool(needs & TOP_K), bool(needs & EDITED)),
            least(logits_SV.dtype),
        )
        return tokens_S

    def _own(self, row: int, tensor: Tensor) -> int:
        self._owned[row].append(tensor)
        return tensor.data_ptr()

    def _count(self, join: RowJoin) -> bool:
        """Counts what the row has seen; from then on the kernels do."""
        params, table = join.params, self.table
        if params.repetition_penalty == 1 and params.frequency_penalty == 0 and params.presence_penalty == 0:
            return False
        reals = table.reals[join.row]
        reals[Real.REPETITION] = params.repetition_penalty
        reals[Real.FREQUENCY] = params.frequency_penalty
        reals[Real.PRESENCE] = params.presence_penalty
        seen, places = np.unique(join.tokens, return_inverse=True)
        times = np.bincount(places[join.prompt_len :], minlength=len(seen))
        counts = 2 * np.minimum(times, 0x7FFE).astype(np.uint16)
        counts[places[: join.prompt_len]] |= 1
        counts_V = torch.zeros(self.vocab_size, dtype=torch.int16, device=table.device)
        counts_V.index_copy_(
            0, upload(seen.astype(np.int64), table.device), upload(counts.view(np.int16), table.device)
        )
        table.ints[join.row, Int.COUNTS] = self._own(join.row, counts_V)
        return True

    def _forbid(self, join: RowJoin) -> bool:
        allowed = join.params.allowed_token_ids
        if allowed is None:
            return False
        forbidden = np.ones(-(-self.vocab_size // 32) * 32, np.bool_)
        forbidden[allowed] = False
        bits = np.packbits(forbidden, bitorder="little").view(np.int32)
        self.table.ints[join.row, Int.FORBIDDEN] = self._own(join.row, upload(bits, self.table.device))
        return True

    def _list(self, join: RowJoin) -> bool:
        """Biases, and stop ids that come too early."""
        params, ints = join.params, self.table.ints[join.row]
        stops = set(join.stop_ids) if params.min_tokens else set()
        bias = params.logit_bias or {}
        listed = sorted(stops | bias.keys())
        if not listed:
            return False
        ints[Int.MIN_END] = join.prompt_len + params.min_tokens
        entries = np.zeros((3, len(listed)), np.int32)
        entries[0] = listed
        entries[1] = [token in stops for token in listed]
        entries[2] = np.array([bias.get(token, 0.0) for token in listed], np.float32).view(np.int32)
        ints[Int.LIST] = self._own(join.row, upload(entries, self.table.device))
        ints[Int.LIST_LENGTH] = len(listed)
        return True
