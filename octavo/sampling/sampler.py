"""The sampler: logits in, tokens out, on the device, with state kept by row.

    sampler = Sampler(max_rows, vocab_size, device)
    sampler.join(join)            # RowJoin: a sequence takes a row; everything kept of the row's last owner is gone
    sampled = sampler.sample(logits_SV, rows_S, positions_S, rows_host, banned, steady)
    sampled.tokens_S              # int64 on the device; -1 where the logits were not finite
    sampled.logprobs              # DeviceLogprobs | None, on the device too
    sampler.prompt_logprobs(logits_MV, targets_M, k, index_M)

    sampler.write_masks(rows_M, masks_MW)         # before a step that samples rows with a grammar

    mode = sampler.graph_mode(rows_host, banned, steady)              # None: call `sample`
    sampler.sample_static(mode, logits_SV, rows_S, positions_S)       # tokens_S

`logits_SV` is of any float type, and is as it was when `sample` returns. `rows_S` and `positions_S` are int64 on the
device; `rows_host` holds the same rows in numpy. A position is the absolute one that the sampled token will have:
that and the row's seed are all that its randomness depends on. `banned` is (banned_rows, banned_tokens) of the plan.
`steady` says that the rows are those of the last call, so that nothing about them need be looked up or uploaded.
Nobody tells the sampler that a row is free: the next join takes it over. Row `max_rows` is a spare that is never
joined: greedy, for entries that fill up a batch.

`sample_static` is launches alone, so it can be captured; a replay gives what `sample` gives, whatever has joined since,
to any rows whose `graph_mode` is the same number. A batch whose tokens' logprobs are asked for, or with banned tokens,
has no such number.

Order of operations, as vLLM's: grammar masks, min_tokens, banned tokens, allowed_token_ids, logit_bias, penalties
(repetition, then frequency and presence), temperature, min_p, top_k, top_p. Greedy rows take the argmax after the
penalties; ties go to the lowest token id. Logprobs are those of the raw logits.

What a row gets depends on its own logits, parameters, seed and position alone. On a GPU, kernels take the rows as they
come (`fused.py`), and nothing waits for the device. Elsewhere torch does the same, and is the kernels' reference: there
the rows of a step are sorted into groups by what must be done to them, so that nobody pays for a feature that only his
neighbour uses, and a step of plain greedy rows is one argmax.

Suffixes: S sampled rows, G rows of a group, V vocabulary, M positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from octavo.core.params import SamplingParams
from octavo.core.plan import IntArray, RowJoin
from octavo.sampling import blocks, truncation
from octavo.sampling.bias import AllowedTokens, Hidden, LogitBias, MinTokens
from octavo.sampling.fused import KERNELS, LOGPROBS, fused_for
from octavo.sampling.grammar_mask import GrammarMask, HiddenRows
from octavo.sampling.logprobs import DeviceLogprobs, logprobs
from octavo.sampling.penalties import Penalties
from octavo.sampling.random import key_of, streams
from octavo.sampling.state import Edit, Int, Mode, Real, RowTable, Selection, upload

# Logits worked on at once: on a CPU, for each thread, what stays in its caches (4 MB of float32); on a GPU what bounds
# scratch memory.
_CHUNK_CPU = 1 << 20
_CHUNK_GPU = 1 << 25
_MASKED = 16  # bit of a graph's mode: some row has a grammar


class Kind(NamedTuple):
    """What must be done to a row. Rows of one kind form a group; as a number it fits into a byte."""

    mode: Mode
    edited: bool  # some edit applies
    candidates: int = 1  # of top_k: a power of two

    def code(self) -> int:
        return self.mode << 6 | self.edited << 5 | self.candidates.bit_length() - 1

    @classmethod
    def of(cls, code: int) -> Kind:
        return cls(Mode(code >> 6), bool(code >> 5 & 1), 1 << (code & 31))


@dataclass(slots=True)
class Group:
    """A slice of the batch in sorted order."""

    start: int
    stop: int
    kind: Kind
    edits: tuple[Edit, ...]
    rows: Selection


@dataclass(slots=True)
class Batch:
    """All that follows from which rows are sampled; it holds until that changes."""

    rows: IntArray
    order_S: Tensor | None  # the sorted order; None where it is the given one
    groups: list[Group]
    min_tokens: Selection | None
    asking: IntArray  # the rows that want logprobs, as indices into the batch
    asking_M: Tensor | None  # None where all of them do, or none
    logprobs_k: int


@dataclass(slots=True)
class Sampled:
    tokens_S: Tensor
    logprobs: DeviceLogprobs | None = None


class Sampler:
    def __init__(self, max_rows: int, vocab_size: int, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.vocab_size = vocab_size
        chunk = _CHUNK_CPU * torch.get_num_threads() if self.device.type == "cpu" else _CHUNK_GPU
        self.chunk_rows = max(1, chunk // vocab_size)
        self.table = RowTable(max_rows, self.device)
        self.kinds = np.zeros(max_rows, np.uint8)  # codes of `Kind`
        self.min_tokens = MinTokens(self.table)
        self.edits: tuple[Edit, ...] = tuple(
            feature(vocab_size, self.table) for feature in (AllowedTokens, LogitBias, Penalties)
        )
        self.fused = fused_for(vocab_size, self.table)
        self.grammars = GrammarMask(max_rows, vocab_size, self.device)
        self._batch: Batch | None = None

    def join(self, join: RowJoin) -> None:
        row, params = join.row, join.params
        self._batch = None
        self.table.reset(row)
        self.grammars.join(join)
        reals, ints = self.table.reals[row], self.table.ints[row]
        reals[Real.TEMPERATURE] = params.temperature or 1.0  # the greedy never divide by it
        # Some token has at least 1 / V of the mass: a smaller top_p keeps the likeliest alone, as this does.
        reals[Real.TOP_P] = max(params.top_p, 0.5 / self.vocab_size)
        reals[Real.MIN_P] = params.min_p
        ints[Int.KEY] = key_of(join.seed)
        ints[Int.TOP_K] = params.top_k if 0 < params.top_k < self.vocab_size else 0
        ints[Int.LOGPROBS] = -1 if params.logprobs is None else params.logprobs
        if self.fused is not None:
            kind = self._kind(params, False)
            self.fused.join(join, kind.mode, kind.candidates)
            return
        self.min_tokens.join(join)
        for edit in self.edits:
            edit.join(join)
        self.kinds[row] = self._kind(params, any(ints[edit.slot] for edit in self.edits)).code()

    def forget(self) -> None:
        """A step was not done: the next one is no sequel of the one before."""
        self._batch = None

    def _kind(self, params: SamplingParams, edited: bool) -> Kind:
        if params.greedy:
            return Kind(Mode.GREEDY, edited)
        if 0 < params.top_k < self.vocab_size:
            return Kind(Mode.TOP_K, edited, truncation.candidates_for(params.top_k))
        return Kind(Mode.NUCLEUS if params.top_p < 1 else Mode.ALL, edited)

    def write_masks(self, rows_M: IntArray, masks_MW: IntArray) -> None:
        if len(rows_M):
            self.grammars.write(rows_M, masks_MW)

    @torch.no_grad()
    def sample(
        self,
        logits_SV: Tensor,
        rows_S: Tensor,
        positions_S: Tensor,
        rows_host: IntArray,
        banned: tuple[IntArray, IntArray],
        steady: bool,
    ) -> Sampled:
        assert logits_SV.shape == (len(rows_host), self.vocab_size)
        if not len(rows_host):
            return Sampled(torch.empty(0, dtype=torch.int64, device=self.device))
        if self.fused is not None:
            return self._sample_fused(logits_SV, rows_S, positions_S, rows_host, banned)
        hidden: list[Hidden | HiddenRows] = []
        if self.grammars.uses(rows_host):
            hidden.append(self.grammars.hide(logits_SV, rows_S, rows_host))
        batch = self._batch
        if batch is None or not (steady or np.array_equal(batch.rows, rows_host)):
            batch = self._batch = self._build(rows_host, rows_S)
        if len(banned[0]):
            hidden.append(self._ban(logits_SV, banned))
        if batch.min_tokens is not None:
            hidden.append(self.min_tokens.hide(logits_SV, positions_S, batch.min_tokens))
        order_S = batch.order_S
        sorted_positions_S = positions_S if order_S is None else positions_S[order_S]
        parts = [self._choose(logits_SV, sorted_positions_S, order_S, group) for group in batch.groups]
        tokens_S = parts[0] if len(parts) == 1 else torch.cat(parts)
        if order_S is not None:
            tokens_S = torch.empty_like(tokens_S).index_copy_(0, order_S, tokens_S)
        for mask in reversed(hidden):
            mask.show(logits_SV)
        if not len(batch.asking):
            return Sampled(tokens_S)
        asking_M = batch.asking_M  # None: all of them
        own_M = tokens_S if asking_M is None else tokens_S[asking_M]
        return Sampled(tokens_S, logprobs(logits_SV, asking_M, own_M, batch.logprobs_k, self.chunk_rows, batch.asking))

    def graph_mode(self, rows_host: IntArray, banned: tuple[IntArray, IntArray], steady: bool) -> int | None:
        """Which sequence of launches serves these rows; None if some of the work needs the host.

        0 is plain greedy; bits: 1 some row is not greedy, 2 some has top_k, 4 some has features that change logits,
        16 some has a grammar.
        It also brings the tables up to date, so it comes before the replay.
        """
        if self.fused is None or len(banned[0]):
            return None
        self.table.flush()
        needs = self.fused.needs_of(rows_host)
        return None if needs & LOGPROBS else needs | (_MASKED if self.grammars.uses(rows_host) else 0)

    @torch.no_grad()
    def sample_static(self, mode: int, logits_SV: Tensor, rows_S: Tensor, positions_S: Tensor) -> Tensor:
        assert self.fused is not None
        if mode & _MASKED:
            self.grammars.apply(logits_SV, rows_S)
        return self.fused.choose(mode & KERNELS, logits_SV, rows_S, positions_S)

    def _sample_fused(
        self,
        logits_SV: Tensor,
        rows_S: Tensor,
        positions_S: Tensor,
        rows_host: IntArray,
        banned: tuple[IntArray, IntArray],
    ) -> Sampled:
        assert self.fused is not None
        self.table.flush()
        needs = self.fused.needs_of(rows_host)
        masked = self.grammars.hide(logits_SV, rows_S, rows_host) if self.grammars.uses(rows_host) else None
        hidden = self._ban(logits_SV, banned) if len(banned[0]) else None
        tokens_S = self.fused.choose(needs & KERNELS, logits_SV, rows_S, positions_S)
        if hidden is not None:
            hidden.show(logits_SV)
        if masked is not None:
            masked.show(logits_SV)
        if not needs & LOGPROBS:
            return Sampled(tokens_S)
        wanted = self.table.ints[rows_host, Int.LOGPROBS]
        asking = np.flatnonzero(wanted >= 0)
        asking_M = upload(asking, self.device) if len(asking) < len(rows_host) else None
        own_M = tokens_S if asking_M is None else tokens_S[asking_M]
        k, index_M = int(wanted.max()), asking.astype(np.int32)
        return Sampled(tokens_S, logprobs(logits_SV, asking_M, own_M, k, self.chunk_rows, index_M))

    @torch.no_grad()
    def prompt_logprobs(self, logits_MV: Tensor, targets_M: Tensor, k: int, index_M: IntArray) -> DeviceLogprobs:
        """Logprobs of the tokens that follow M positions of prompts."""
        return logprobs(logits_MV, None, targets_M, k, self.chunk_rows, index_M)

    def _build(self, rows_host: IntArray, rows_S: Tensor) -> Batch:
        self.table.flush()
        kinds = self.kinds[rows_host]
        rows, order_S = rows_host.copy(), None
        sorted_rows, sorted_rows_S = rows, rows_S
        if (kinds != kinds[0]).any():
            order = np.argsort(kinds, kind="stable")
            order_S = upload(order, self.device)
            kinds, sorted_rows, sorted_rows_S = kinds[order], rows[order], rows_S[order_S]
        ends = [*(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(rows)]
        groups = []
        start = 0
        for end in ends:
            kind = Kind.of(int(kinds[start]))
            at_once = self.chunk_rows if kind.edited or kind.mode is not Mode.GREEDY else end - start
            while start < end:
                stop = min(start + at_once, end)
                selection = self.table.select(sorted_rows[start:stop], sorted_rows_S[start:stop])
                edits = tuple(edit for edit in self.edits if selection.uses(edit.slot))
                groups.append(Group(start, stop, kind, edits, selection))
                start = stop
        ints = self.table.ints[rows]
        asking = np.flatnonzero(ints[:, Int.LOGPROBS] >= 0)
        return Batch(
            rows,
            order_S,
            groups,
            self.table.select(rows, rows_S) if ints[:, Int.STOPS_SLOT].any() else None,
            asking.astype(np.int32),
            upload(asking, self.device) if 0 < len(asking) < len(rows) else None,
            int(ints[asking, Int.LOGPROBS].max(initial=0)),
        )

    def _ban(self, logits_SV: Tensor, banned: tuple[IntArray, IntArray]) -> Hidden:
        rows, tokens = upload(np.stack(banned).astype(np.int64), self.device)
        return Hidden(logits_SV, rows, tokens)

    def _choose(self, logits_SV: Tensor, positions_S: Tensor, order_S: Tensor | None, group: Group) -> Tensor:
        """The tokens of a group. `positions_S` is in sorted order, `logits_SV` in the given one."""
        span, rows = slice(group.start, group.stop), group.rows
        logits_GV = logits_SV[span] if order_S is None else logits_SV.index_select(0, order_S[span])
        positions_G = positions_S[span]
        if group.edits:
            logits_GV = logits_GV.to(torch.float32, copy=order_S is None)
            for edit in group.edits:
                edit.apply(logits_GV, rows)
        if group.kind.mode is Mode.GREEDY:
            best_G, tokens_G = blocks.argmax(logits_GV)
            bad_G = blocks.not_finite(best_G)
        else:
            tokens_G, bad_G = self._draw(logits_GV.float(), group.kind, rows, positions_G)
        tokens_G.masked_fill_(bad_G, -1)
        for edit in group.edits:
            edit.observe(tokens_G, positions_G, rows)
        return tokens_G

    def _draw(self, logits_GV: Tensor, kind: Kind, rows: Selection, positions_G: Tensor) -> tuple[Tensor, Tensor]:
        keys_G = streams(rows.int(Int.KEY), positions_G)
        temperature_G1, top_p_G1 = rows.real(Real.TEMPERATURE), rows.real(Real.TOP_P)
        if kind.mode is Mode.TOP_K:
            top_k_G, min_p_G1 = rows.int(Int.TOP_K), rows.real(Real.MIN_P)
            return truncation.draw_top_k(
                logits_GV, kind.candidates, top_k_G, temperature_G1, min_p_G1, top_p_G1, keys_G
            )
        if (rows.host_reals[:, Real.TEMPERATURE] != 1).any():
            logits_GV = logits_GV / temperature_G1
        p_GV = torch.softmax(logits_GV, dim=-1)
        if rows.host_reals[:, Real.MIN_P].any():
            p_GV = truncation.drop_below_min_p(p_GV, rows.real(Real.MIN_P))
        if kind.mode is Mode.ALL:
            return truncation.draw_all(p_GV, keys_G)
        return truncation.draw_nucleus(p_GV, top_p_G1.squeeze(1), keys_G)
