"""Attention in plain torch, for CPUs.

The cache of a layer is [K, 2, blocks, block size, D], keys and values of a head beside each other, so that one
`index_select` collects whole blocks of many sequences and a sequence whose blocks lie in a row needs no copy at all.
A quantised cache is made into the model's type as it is collected. With latent attention it is [1, 1, ...]: keys are
values too, and what of an output is none is cut off.

Scores and softmax are in float32: `scaled_dot_product_attention` never rounds them (a bfloat16 `bmm` is twice as
fast and four times as wrong). No slot counts that a sequence did not write: what others left there may be NaN.

The work of a step is a list of jobs, planned once for all layers with the same window and kept while the step is
steady: a few groups of single-token sequences of similar length, runs of chunks that have nothing cached before
them, and each other chunk by itself.

Legend: T tokens, N sequences of a job, L context of a job, K key/value heads, G query heads of each, D head size,
S slots, B blocks, X = 2K, Y = block size * D, R = X * B.
"""

from __future__ import annotations

import math
import mmap
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from octavo.attention.base import AttendOptions, AttentionSpec, ForwardBatch
from octavo.kernels import kv_cache

IntArray = np.typing.NDArray[np.int64]
BoolArray = np.typing.NDArray[np.bool_]

GROUP_BYTES = 2 << 20  # of keys and values that a group collects: they stay in the cores' caches until they are read
WASTE_BYTES = 128 << 10  # of padding in a group; more costs more time than another group's 20 microseconds
# Queries of a chunk at a time, each piece with the keys up to its own last. That is torch's own block of queries, and
# a quarter faster at 128 to 512 tokens than its causal mode, which computes what it then masks.
PIECE = 32


class _Layer:
    """The views of one layer's cache that are used again and again."""

    __slots__ = ("blocks", "dtype", "keys_1KSD", "parts_SKD", "rows_RY", "scales", "values_1KSD")

    def __init__(self, cache_K2BMD: Tensor, dtype: torch.dtype) -> None:
        self.dtype = dtype
        heads, kept, blocks, size, dim = cache_K2BMD.shape
        self.blocks = [cache_K2BMD.view(kept * heads, blocks, size * dim)]  # all that a block has, by its number
        self.rows_RY = cache_K2BMD.view(-1, size * dim)
        parts = cache_K2BMD.view(1, heads, kept, blocks * size, dim).unbind(2)
        self.keys_1KSD, self.values_1KSD = parts[0], parts[-1]
        self.parts_SKD = [part[0].transpose(0, 1) for part in parts]
        self.scales: _Scales | None = None
        if cache_K2BMD.dtype != dtype:
            self.scales = _Scales(torch.zeros(cache_K2BMD.shape[:-1], dtype=kv_cache.SCALE_DTYPE))
            # torch can neither copy nor move all types of one byte by an index.
            self.parts_SKD = [part.view(torch.int8) for part in self.parts_SKD]
            self.blocks = [self.blocks[0].view(torch.int8), self.scales.blocks_XBM]

    def write(self, slots_T: Tensor, k_TKD: Tensor, v_TKD: Tensor | None) -> _Own:
        """Returns keys and values as they will be read. `v_TKD` None: they are the keys."""
        found = []
        for part, x_TKD in enumerate((k_TKD, v_TKD)):
            if x_TKD is None:
                continue
            kept = x_TKD
            if self.scales is not None:
                kept, scale_TK = kv_cache.quantise(x_TKD, self.rows_RY.dtype)
                x_TKD = kv_cache.dequantise(kept, scale_TK, self.dtype)
                self.scales.parts_SK[part].index_copy_(0, slots_T, scale_TK)
                kept = kept.view(torch.int8)
            self.parts_SKD[part].index_copy_(0, slots_T, kept)
            found.append(x_TKD)
        return found[0], found[-1]

    def collect(self, index_R: Tensor, out_RY: Tensor) -> None:
        """Whole blocks, by rows of all heads."""
        if self.scales is None:
            torch.index_select(self.rows_RY, 0, index_R, out=out_RY)
            return
        scale_RM = self.scales.rows_RM.index_select(0, index_R)
        kept = self.rows_RY.index_select(0, index_R).view(*scale_RM.shape, -1)
        out_RY.copy_(kv_cache.dequantise(kept, scale_RM, self.dtype).flatten(1))

    def piece(self, begin: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [1, K, L, D] of slots that lie in a row."""
        k, v = self.keys_1KSD.narrow(2, begin, length), self.values_1KSD.narrow(2, begin, length)
        if self.scales is None:
            return k, v
        k_scale, v_scale = (part.T.narrow(1, begin, length).unsqueeze(0) for part in self.scales.parts_SK)
        return kv_cache.dequantise(k, k_scale, self.dtype), kv_cache.dequantise(v, v_scale, self.dtype)


class _Scales:
    """Of a quantised layer, from [K, 2, blocks, block size]."""

    __slots__ = ("blocks_XBM", "parts_SK", "rows_RM")

    def __init__(self, scales_K2BM: Tensor) -> None:
        self.blocks_XBM = scales_K2BM.flatten(0, 1)
        self.rows_RM = scales_K2BM.flatten(0, 2)
        parts = scales_K2BM.flatten(2).permute(1, 2, 0).unbind(0)
        self.parts_SK = (parts[0], parts[-1])


_Own = tuple[Tensor, Tensor]  # [T, K, D] each


class _Job(Protocol):
    def attend(self, layer: _Layer, q_THD: Tensor, own: _Own, options: AttendOptions, out_THD: Tensor) -> None:
        """Fills the rows of `out_THD` that are this job's. `own` are the step's keys and values."""


class TorchAttention:
    name = "torch"
    graph_safe = False

    @staticmethod
    def supports(spec: AttentionSpec) -> str | None:
        if spec.device.type != "cpu":
            return f"it is made for CPUs, not {spec.device.type}"
        if spec.cache_dtype not in (spec.dtype, *kv_cache.DTYPES):
            return f"it cannot keep keys and values in {spec.cache_dtype}"
        return None if spec.dtype.is_floating_point else f"it cannot compute in {spec.dtype}"

    def __init__(self, spec: AttentionSpec, num_blocks: int) -> None:
        self.spec = spec
        self.group = spec.num_heads // spec.num_kv_heads
        # A single query row in half precision takes torch's matrix-vector path, which is three times as slow as two.
        self.twice = self.group == 1 and spec.dtype != torch.float32
        self.kept = 1 if spec.latent_dim else 2  # tensors of a head: of a latent, keys are values too
        self.token_bytes = self.kept * spec.num_kv_heads * spec.head_dim * spec.dtype.itemsize  # as it is read
        shape = (spec.num_layers, spec.num_kv_heads, self.kept, num_blocks, spec.block_size, spec.head_dim)
        self.layers = [_Layer(cache, spec.dtype) for cache in _zeros(shape, spec.cache_dtype)]
        self.first_rows_X1 = np.arange(self.kept * spec.num_kv_heads)[:, None] * num_blocks
        # A piece is a task for each head: enough of them for all threads.
        self.piece = PIECE * -(-torch.get_num_threads() // spec.num_heads)
        self._workspace = torch.empty(0, dtype=spec.dtype)
        self._bands: dict[int | None, Tensor] = {}

    def plan(self, batch: ForwardBatch) -> None:
        """A steady step extends the plan that the step before left in the same batch."""
        for part in batch.groups:
            if part.steady and part.plan is not None:
                part.plan.advance(part)
            else:
                part.plan = _Plan(self, part)

    def cache(self, layer: int) -> None:
        """Its layout is not that of other kernels."""

    def write(self, layer: int, k_TKD: Tensor, v_TKD: Tensor, batch: ForwardBatch) -> None:
        batch.plan.own = self.layers[layer].write(batch.slots_T, k_TKD, v_TKD if self.kept == 2 else None)

    def attend(self, layer: int, q_THD: Tensor, batch: ForwardBatch, options: AttendOptions) -> Tensor:
        cache = self.layers[layer]
        jobs = batch.plan.jobs(options.window)
        if len(jobs) == 1 and isinstance(jobs[0], _Group):
            return jobs[0].mix(cache, q_THD, options)[..., : self.spec.value_dim].reshape(len(q_THD), -1)
        out_THD = q_THD.new_empty(q_THD.shape)
        for job in jobs:
            job.attend(cache, q_THD, batch.plan.own, options, out_THD)
        return out_THD[..., : self.spec.value_dim].flatten(1)

    def poison(self, blocks_P: Tensor) -> None:
        for layer in self.layers:
            for blocks in layer.blocks:
                blocks.index_fill_(1, blocks_P.long(), float("nan") if blocks.is_floating_point() else 127)

    def copy_blocks(self, src_P: Tensor, dst_P: Tensor) -> None:
        for layer in self.layers:
            for blocks in layer.blocks:
                blocks.index_copy_(1, dst_P.long(), blocks.index_select(1, src_P))

    def workspace(self, size: int) -> Tensor:
        """Room for `size` elements, the same for all jobs: each uses it from its collecting to its attention."""
        if len(self._workspace) < size:
            self._workspace = self._workspace.new_empty(size)
        return self._workspace[:size]

    def attend_causally(
        self,
        q_XYQD: Tensor,
        k_XYLD: Tensor,
        v_XYLD: Tensor,
        options: AttendOptions,
        out_XYQD: Tensor,
        of_heads: _OfHeads,
        before: int = 0,
    ) -> None:
        """The last query is at the position of the last key; the first key has so many before it.

        Piece by piece: no mask of Q x L is ever made. Where windows are chunks, no piece is of two.
        """
        window, chunk = (None, options.window) if self.spec.chunked else (options.window, None)
        queries, keys = q_XYQD.shape[2], k_XYLD.shape[2]
        band_QL = self._band(window, keys if window is None else min(keys, window + self.piece))
        done = 0
        while done < queries:
            count = min(self.piece, queries - done)
            first = keys - queries + done
            begin = 0 if window is None else max(0, first - window + 1)
            if chunk is not None:
                into = (before + first) % chunk
                count, begin = min(count, chunk - into), first - into
            length = first + count - begin
            o_XYQD = _mix(
                q_XYQD.narrow(2, done, count),
                k_XYLD.narrow(2, begin, length),
                v_XYLD.narrow(2, begin, length),
                band_QL[-count:, -length:],
                options,
                of_heads,
            )
            out_XYQD.narrow(2, done, count).copy_(o_XYQD)
            done += count

    def _band(self, window: int | None, columns: int) -> Tensor:
        """The mask of a piece against at least `columns` keys. That of a smaller one is its bottom right corner."""
        band_QL = self._bands.get(window)
        if band_QL is None or band_QL.shape[1] < columns:
            columns = max(self.piece, 1 << (columns - 1).bit_length())
            key_L = np.arange(columns)
            query_Q1 = key_L[-self.piece :, None]
            hidden_QL = key_L > query_Q1
            if window is not None:
                hidden_QL |= key_L <= query_Q1 - window
            band_QL = self._bands[window] = self.mask(hidden_QL)
        return band_QL

    def mask(self, hidden: BoolArray) -> Tensor:
        """To be added to scores."""
        return torch.zeros(hidden.shape, dtype=self.spec.dtype).masked_fill_(torch.from_numpy(hidden), -torch.inf)


_OfHeads = tuple[Tensor | None, Tensor | None]  # sinks and slopes, to be broadcast with scores


def _mix(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: AttendOptions, of_heads: _OfHeads) -> Tensor:
    """Attention over [X, Y, Q, D] and [X, Y, L, D]; soft caps, sinks and slopes are more than torch's own can do."""
    sinks, slopes = of_heads
    if options.softcap is None and sinks is None and slopes is None:
        return scaled_dot_product_attention(q, k, v, mask, scale=options.scale)
    scores = (q.float() @ k.float().mT).mul_(options.scale)
    if options.softcap is not None:
        scores = scores.div_(options.softcap).tanh_().mul_(options.softcap)
    if slopes is not None:  # from the last key on: what all scores of a query have in common does not count
        scores += slopes * torch.arange(1 - k.shape[-2], 1)
    if mask is not None:
        scores += mask
    if sinks is None:
        return (scores.softmax(-1) @ v.float()).to(q.dtype)
    scores = torch.cat((scores, sinks.float().expand(*scores.shape[:-1], 1)), -1)
    return (scores.softmax(-1)[..., :-1] @ v.float()).to(q.dtype)


def _by_head(options: AttendOptions, *shape: int) -> _OfHeads:
    sinks_H, slopes_H = options.sinks_H, options.slopes_H
    return None if sinks_H is None else sinks_H.view(shape), None if slopes_H is None else slopes_H.view(shape)


def _first_seen(position_N: IntArray, window: int | None, chunked: bool) -> IntArray:
    """The first tokens that queries at these positions see."""
    if window is None:
        return np.zeros_like(position_N)
    return position_N // window * window if chunked else np.maximum(position_N - window + 1, 0)


def _select(x: Tensor | None, i: int) -> Tensor | None:
    return None if x is None else x[i]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The cache, as pages that the kernel has not yet given: start-up does not wait for gigabytes of zeros.

    Memory is taken when blocks are first used, in large pages (10 to 20 % faster to collect from than small ones).
    """
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


class _Plan:
    """The jobs of a step, for each window that a layer asks for."""

    __slots__ = ("_backend", "_batch", "_contexts_N", "_jobs", "own")

    own: _Own  # of the layer that is being computed: a chunk without a prefix reads nothing else

    def __init__(self, backend: TorchAttention, batch: ForwardBatch) -> None:
        self._backend = backend
        self._batch = batch
        self._contexts_N = batch.context_lens_N[: batch.num_single].numpy().astype(np.int64)
        self._jobs: dict[int | None, list[_Job]] = {}

    def jobs(self, window: int | None) -> list[_Job]:
        found = self._jobs.get(window)
        if found is None:
            found = self._jobs[window] = [*self._groups(window), *self._chunks(window)]
        return found

    def advance(self, batch: ForwardBatch) -> None:
        self._batch = batch
        self._contexts_N += 1
        for window, jobs in list(self._jobs.items()):
            if not all(isinstance(job, _Group) and job.advance(batch) for job in jobs):
                del self._jobs[window]

    def _groups(self, window: int | None) -> list[_Group]:
        """Single-token sequences, longest first, cut where a group gets too large or too much of it is padding."""
        if not len(self._contexts_N):
            return []
        backend = self._backend
        length_N = self._contexts_N
        if window is not None:
            length_N = np.minimum(length_N, window + backend.spec.block_size)
        order_N = np.argsort(-length_N, kind="stable")
        room, spare = GROUP_BYTES // backend.token_bytes, WASTE_BYTES // backend.token_bytes
        starts, longest, padding = [0], int(length_N[order_N[0]]), 0
        for i, length in enumerate(length_N[order_N].tolist()):
            padding += longest - length
            if (i + 1 - starts[-1]) * longest > room and i > starts[-1] or padding > spare:
                starts.append(i)
                longest, padding = length, 0
        parts = [np.sort(rows_N) for rows_N in np.split(order_N, starts[1:])]  # all rows in one: they lie in a row
        return [_Group(backend, rows_N, self._contexts_N[rows_N], self._batch, window) for rows_N in parts]

    def _chunks(self, window: int | None) -> list[_Job]:
        batch, backend = self._batch, self._backend
        jobs: list[_Job] = []
        fresh: _Fresh | None = None
        start = batch.num_single
        for i, (count, context) in enumerate(zip(batch.query_lens, batch.context_lens, strict=True)):
            if count < context:
                row_B = batch.block_table_NB[batch.num_single + i].numpy()
                jobs.append(_Chunk(backend, start, count, context, row_B, window))
                fresh = None
            elif fresh is not None and fresh.count == count:
                fresh.number += 1
            else:
                fresh = _Fresh(backend, start, count)
                jobs.append(fresh)
            start += count
        return jobs


class _Context:
    """Blocks of N sequences, padded to the longest, and how a layer's keys and values in them are read."""

    __slots__ = ("_first", "_index_R", "_k_NKLD", "_padding_P", "_part", "_v_NKLD", "_views", "_work_RY", "_work_XSD")

    def __init__(self, backend: TorchAttention, blocks_NB: IntArray) -> None:
        spec = backend.spec
        number, blocks = blocks_NB.shape
        self._first: int | None = None
        if number == 1 and np.array_equal(blocks_NB[0], np.arange(blocks) + blocks_NB[0, 0]):
            self._first = int(blocks_NB[0, 0]) * spec.block_size
        else:
            # Rows of one dimension, because torch collects those with all threads.
            self._index_R = torch.from_numpy((backend.first_rows_X1 + blocks_NB.reshape(-1)).reshape(-1))
            kept = backend.kept * spec.num_kv_heads
            work = backend.workspace(kept * blocks_NB.size * spec.block_size * spec.head_dim)
            self._work_RY = work.view(-1, spec.block_size * spec.head_dim)
            self._work_XSD = work.view(kept, -1, spec.head_dim)
            work_K2NLD = work.view(spec.num_kv_heads, -1, number, blocks * spec.block_size, spec.head_dim)
            parts = work_K2NLD.permute(1, 2, 0, 3, 4).unbind(0)
            self._k_NKLD, self._v_NKLD = parts[0], parts[-1]
        self._padding_P: Tensor | None = None

    def use(self, begin: int, end: int, padding_P: Tensor | None = None) -> None:
        """The tokens that `read` returns, counted from the start of the first block; `padding_P` of all are zeros."""
        self._part = (begin, end - begin)
        self._padding_P = padding_P
        if self._first is None:
            self._views = (self._k_NKLD.narrow(2, *self._part), self._v_NKLD.narrow(2, *self._part))

    def read(self, layer: _Layer) -> tuple[Tensor, Tensor]:
        """Keys and values as [N, K, L, D]; valid until the next read of any context."""
        if self._first is None:
            layer.collect(self._index_R, self._work_RY)
            if self._padding_P is not None:
                self._work_XSD.index_fill_(1, self._padding_P, 0)
            return self._views
        begin, length = self._part
        return layer.piece(self._first + begin, length)


class _Group:
    """Sequences with one token each, of similar context lengths.

    The G query heads of a key/value head take the place of a sequence's queries: nothing is repeated.
    """

    __slots__ = (
        "_backend",
        "_base_N",
        "_blocks",
        "_context",
        "_even",
        "_left",
        "_length_N",
        "_longest",
        "_mask_N11L",
        "_most",
        "_rows_N",
        "_slice",
        "_table_rows_N",
        "_window",
    )

    def __init__(
        self, backend: TorchAttention, rows_N: IntArray, length_N: IntArray, batch: ForwardBatch, window: int | None
    ) -> None:
        self._backend = backend
        self._window = window
        self._table_rows_N = rows_N
        self._length_N = length_N
        self._even = bool((length_N == length_N[0]).all())
        in_a_row = np.array_equal(rows_N, np.arange(len(rows_N)) + rows_N[0])
        self._slice = (int(rows_N[0]), len(rows_N)) if in_a_row else None
        self._rows_N = torch.from_numpy(rows_N)
        self._mask_N11L: Tensor | None = None
        self._collect(batch)
        self._most = self._blocks + max(4, self._blocks // 4)
        self._trim()

    def advance(self, batch: ForwardBatch) -> bool:
        """Every sequence is one token longer. False if the group has grown so much that it should be cut anew."""
        self._length_N += 1
        self._longest += 1
        self._left -= 1
        if self._left < 0:
            self._collect(batch)
        self._trim()
        return self._blocks <= self._most

    def _collect(self, batch: ForwardBatch) -> None:
        """Finds the blocks that are needed until a sequence enters its next one."""
        size = self._backend.spec.block_size
        end_N = -(-self._length_N // size)
        first_N = self._first_seen() // size
        self._blocks = int((end_N - first_N).max())
        index_NB = np.minimum(first_N[:, None] + np.arange(self._blocks), end_N[:, None] - 1)  # none past its own last
        table_NB = batch.block_table_NB.numpy()
        self._context = _Context(self._backend, table_NB[self._table_rows_N[:, None], index_NB])
        self._base_N = first_N * size
        self._longest = int((self._length_N - self._base_N).max())
        self._left = int((end_N * size - self._length_N).min())

    def _first_seen(self) -> IntArray:
        """The first token that each sequence's query sees."""
        return _first_seen(self._length_N - 1, self._window, self._backend.spec.chunked)

    def _trim(self) -> None:
        """Fits what is read, and the mask over it, to this step's lengths."""
        longest = self._longest
        first_N = self._first_seen() - self._base_N
        if self._even:
            self._context.use(int(first_N[0]), longest)
            return
        end_N1 = (self._length_N - self._base_N)[:, None]
        position_L = np.arange(self._blocks * self._backend.spec.block_size)
        hidden_NL = position_L >= end_N1
        self._context.use(0, longest, torch.from_numpy(np.flatnonzero(hidden_NL)))
        if self._window is not None:
            hidden_NL |= position_L < first_N[:, None]
        self._mask_N11L = self._backend.mask(hidden_NL[:, :longest])[:, None, None]

    def mix(self, layer: _Layer, q_NHD: Tensor, options: AttendOptions) -> Tensor:
        """The attention of these sequences' queries, as [N, K, G, D]."""
        k_NKLD, v_NKLD = self._context.read(layer)
        q_NKGD = q_NHD.view(len(q_NHD), k_NKLD.shape[1], -1, k_NKLD.shape[3])
        if self._backend.twice:
            q_NKGD = q_NKGD.repeat(1, 1, 2, 1)
        o_NKGD = _mix(q_NKGD, k_NKLD, v_NKLD, self._mask_N11L, options, _by_head(options, k_NKLD.shape[1], -1, 1))
        return o_NKGD[:, :, :1] if self._backend.twice else o_NKGD

    def attend(self, layer: _Layer, q_THD: Tensor, own: _Own, options: AttendOptions, out_THD: Tensor) -> None:
        out_TKGD = out_THD.view(len(out_THD), -1, self._backend.group, out_THD.shape[2])
        if self._slice is not None:
            out_TKGD.narrow(0, *self._slice).copy_(self.mix(layer, q_THD.narrow(0, *self._slice), options))
        else:
            out_TKGD.index_copy_(0, self._rows_N, self.mix(layer, q_THD.index_select(0, self._rows_N), options))


class _Fresh:
    """Neighbouring chunks of the same number of tokens, with nothing before them: their own keys are all there are."""

    __slots__ = ("_backend", "_start", "count", "number")

    def __init__(self, backend: TorchAttention, start: int, count: int) -> None:
        self._backend = backend
        self._start = start
        self.count = count
        self.number = 1

    def attend(self, layer: _Layer, q_THD: Tensor, own: _Own, options: AttendOptions, out_THD: Tensor) -> None:
        part = slice(self._start, self._start + self.number * self.count)
        heads, group, size = self._backend.spec.num_kv_heads, self._backend.group, self._backend.spec.head_dim
        shape = (self.number, self.count, heads, -1, size)
        # [N, K, G, L, D], with keys and values that are the same for all G without being repeated.
        q, out = (x[part].view(shape).permute(0, 2, 3, 1, 4) for x in (q_THD, out_THD))
        k, v = (x[part].view(shape).permute(0, 2, 3, 1, 4).expand(-1, -1, group, -1, -1) for x in own)
        # torch takes two leading dimensions: one sequence after the other or one head, whichever are fewer.
        dim = 0 if self.number < heads else 1
        sinks_KG11, slopes_KG11 = _by_head(options, heads, -1, 1, 1)
        for i in range(min(self.number, heads)):
            of_heads = (sinks_KG11, slopes_KG11)
            if dim:  # those of one head
                of_heads = _select(sinks_KG11, i), _select(slopes_KG11, i)
            self._backend.attend_causally(
                q.select(dim, i), k.select(dim, i), v.select(dim, i), options, out.select(dim, i), of_heads
            )


class _Chunk:
    """Several tokens of one sequence, after others that are in the cache."""

    __slots__ = ("_backend", "_before", "_context", "_rows")

    def __init__(
        self, backend: TorchAttention, start: int, count: int, context: int, row_B: IntArray, window: int | None
    ) -> None:
        self._backend = backend
        self._rows = slice(start, start + count)
        size = backend.spec.block_size
        first = int(_first_seen(np.array(context - count), window, backend.spec.chunked)) // size
        self._before = first * size
        self._context = _Context(backend, row_B[None, first : -(-context // size)])
        self._context.use(0, context - first * size)

    def attend(self, layer: _Layer, q_THD: Tensor, own: _Own, options: AttendOptions, out_THD: Tensor) -> None:
        k_KGLD, v_KGLD = (x[0].unsqueeze(1).expand(-1, self._backend.group, -1, -1) for x in self._context.read(layer))
        shape = (-1, *k_KGLD.shape[:2], k_KGLD.shape[3])
        q_KGQD, out_KGQD = (x[self._rows].view(shape).permute(1, 2, 0, 3) for x in (q_THD, out_THD))
        of_heads = _by_head(options, len(k_KGLD), -1, 1, 1)
        self._backend.attend_causally(q_KGQD, k_KGLD, v_KGLD, options, out_KGQD, of_heads, self._before)
