"""The seam between models and attention kernels: what a step looks like, and what a backend must do with it.

Legend of suffixes: T tokens of the step, N sequences (rows) in it, B blocks of a row's table, S sampled rows,
H query heads, K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from octavo.kernels.kv_cache import SCALE_DTYPE


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """What a model asks of attention; a backend answers with None or with the reason it cannot."""

    num_layers: int  # of a group, if layers are in groups
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    block_size: int
    max_model_len: int
    windows: tuple[int | None, ...] = ()  # distinct sliding windows of the layers; None is full attention
    max_num_seqs: int = 256  # most sequences of a step, for workspaces that are allocated once
    # Of the cache: None is `dtype`, else one of octavo.kernels.kv_cache's.
    kv_dtype: torch.dtype | None = None
    # Latent attention: there is one key/value head, and a token's values are the first so many of its key's. 0: apart.
    latent_dim: int = 0
    sinks: bool = False  # layers have sinks
    slopes: bool = False  # and slopes (ALiBi)
    # Windows are chunks: with one of w tokens, the query at position p sees no further back than p // w * w.
    chunked: bool = False

    @property
    def cache_dtype(self) -> torch.dtype:
        return self.kv_dtype or self.dtype

    @property
    def quantised(self) -> bool:
        return self.cache_dtype != self.dtype

    @property
    def value_dim(self) -> int:
        return self.latent_dim or self.head_dim

    def kv_bytes_per_block(self) -> int:
        kept = 1 if self.latent_dim else 2
        head = self.head_dim * self.cache_dtype.itemsize + (SCALE_DTYPE.itemsize if self.quantised else 0)
        return kept * self.num_layers * self.num_kv_heads * self.block_size * head


@dataclass(frozen=True, slots=True)
class AttendOptions:
    """How a layer attends. A layer keeps one; it is a key of whatever a backend prepares for it."""

    scale: float
    window: int | None = None  # the query at position p sees positions (p - window, p], or to p + window if not causal
    softcap: float | None = None  # scores become softcap * tanh(score / softcap)
    # [H]: of each head a score beside those of its tokens, which takes its share and gives nothing. Part of no key.
    sinks_H: Tensor | None = field(default=None, compare=False)
    # [H], float32: of each head what a score loses for each token between its key and the query. Likewise.
    slopes_H: Tensor | None = field(default=None, compare=False)
    causal: bool = True  # only the backends for whole prompts can else


@dataclass(slots=True)
class ForwardBatch:
    """The input of one forward pass. Sequences with one token in the step come first (`num_single` of them)."""

    token_ids_T: Tensor  # int64
    positions_T: Tensor  # int64
    slots_T: Tensor  # int64: block * block_size + offset, where the token's KV is written; negative: nowhere
    query_start_N1: Tensor  # int32, cumulative tokens: sequence i owns tokens [start[i], start[i + 1])
    context_lens_N: Tensor  # int32: tokens of the sequence in the cache once this step has written its own; 0: padding
    block_table_NB: Tensor  # int32; entries past the context are 0 and must not be read as data
    num_single: int  # leading sequences with exactly one token here
    max_query_len: int
    max_context_len: int  # an upper bound, known on the host
    attention: AttentionBackend
    # Host copies, for backends that plan on the CPU; ascending like the tensors above.
    query_lens: list[int] = field(default_factory=list)  # of the sequences after num_single only
    context_lens: list[int] = field(default_factory=list)  # likewise
    types_T: Tensor | None = None  # int64: which of two texts each token is of; None: all are of the first
    steady: bool = False  # same sequences as in the step before, one token each
    plan: Any = None  # whatever the backend's plan() left for its attend()
    # The same step for layers of further groups: all but slots, block tables and plan is shared.
    others: list[ForwardBatch] = field(default_factory=list)

    @property
    def groups(self) -> list[ForwardBatch]:
        """The step as the layers of each group see it (`octavo.models.groups`)."""
        return [self, *self.others]

    def add_groups(self, slots: Sequence[Tensor], tables: Sequence[Tensor]) -> None:
        for slots_T, table_NB in zip(slots, tables, strict=True):
            self.others.append(replace(self, slots_T=slots_T, block_table_NB=table_NB, others=[]))


class AttentionBackend(Protocol):
    """Owns the KV cache tensors (their layout is its business) and computes attention over them.

    A step is `plan`, then in each layer `write` and `attend`. A step that is captured may end in padding: sequences
    of context 0 whose slots are negative. Nothing is written for them, and their output is finite.
    """

    name: str
    graph_safe: bool  # a step of single tokens, plan() included, can be captured in a CUDA graph

    @staticmethod
    def supports(spec: AttentionSpec) -> str | None:
        """None if this backend can serve the spec here, else the reason why not."""

    def __init__(self, spec: AttentionSpec, num_blocks: int) -> None: ...

    def plan(self, batch: ForwardBatch) -> None:
        """Once a step, before the first layer: whatever layers share, left in `plan` of each of `batch.groups`."""

    def cache(self, layer: int) -> tuple[Tensor, ...] | None:
        """Keys and values as [blocks, block size, K, D], for a kernel that writes instead of `write`.

        If they are quantised, their scales follow, as [blocks, block size, K]; with latent attention there are only
        keys, as [blocks, block size, D]. None where the layout is another: then only `write` writes.
        """

    def write(self, layer: int, k_TKD: Tensor, v_TKD: Tensor, batch: ForwardBatch) -> None:
        """Puts the step's keys and values at `batch.slots_T`, and what has a negative slot nowhere.

        With latent attention the values are not read: they are part of the keys.
        """

    def attend(self, layer: int, q_THD: Tensor, batch: ForwardBatch, options: AttendOptions) -> Tensor:
        """Causal attention over all that is written, as [T, H * D] in q's dtype (D: of values)."""

    def poison(self, blocks_P: Tensor) -> None:
        """Fills whole blocks in every layer with what no answer can hide: for debugging, where a backend can."""

    def copy_blocks(self, src_P: Tensor, dst_P: Tensor) -> None:
        """Copies whole blocks in every layer; all sources are read before any destination is written."""
