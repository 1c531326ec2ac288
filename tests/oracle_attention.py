"""Paged attention written to be obviously right: one token, one head at a time is the definition, a loop the code.

It is the independent oracle for attention backends and lets models be tested without any of them. Softmax and sums
are in float32. Reading a slot of the cache that was never written gives NaN, which no comparison survives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.attention.base import AttendOptions, AttentionSpec, ForwardBatch


class OracleAttention:
    name = "oracle"
    graph_safe = False

    def __init__(self, spec: AttentionSpec, num_blocks: int) -> None:
        self.block_size = spec.block_size
        shape = (spec.num_layers, num_blocks * spec.block_size, spec.num_kv_heads, spec.head_dim)
        self.keys = torch.full(shape, torch.nan, dtype=spec.dtype, device=spec.device)
        self.values = self.keys.clone()
        self.value_dim = spec.value_dim
        self.chunked = spec.chunked

    @staticmethod
    def supports(spec: AttentionSpec) -> str | None:
        return None

    def plan(self, batch: ForwardBatch) -> None:
        batch.plan = "planned"

    def cache(self, layer: int) -> None:
        """Only `write` writes."""

    def write(self, layer: int, k_TKD: Tensor, v_TKD: Tensor, batch: ForwardBatch) -> None:
        assert batch.plan == "planned", "plan() must run before the first layer"
        self.keys[layer, batch.slots_T] = k_TKD
        self.values[layer, batch.slots_T] = v_TKD

    def attend(self, layer: int, q_THD: Tensor, batch: ForwardBatch, options: AttendOptions) -> Tensor:
        out_THD = q_THD.new_empty(*q_THD.shape[:2], self.value_dim)
        starts = batch.query_start_N1.tolist()
        for row, context in enumerate(batch.context_lens_N.tolist()):
            positions = torch.arange(context, device=q_THD.device)
            blocks = batch.block_table_NB[row, positions // self.block_size].long()
            slots = blocks * self.block_size + positions % self.block_size
            k, v = self.keys[layer, slots].float(), self.values[layer, slots].float()
            group = q_THD.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            for token in range(starts[row], starts[row + 1]):
                last = int(batch.positions_T[token])
                first = 0 if options.window is None else max(0, last - options.window + 1)
                if options.window is not None and self.chunked:
                    first = last // options.window * options.window
                scores = torch.einsum("hd,chd->hc", q_THD[token].float(), k[first : last + 1]) * options.scale
                if options.softcap is not None:
                    scores = options.softcap * torch.tanh(scores / options.softcap)
                if options.slopes_H is not None:
                    scores -= options.slopes_H[:, None] * (last - positions[first : last + 1])
                if options.sinks_H is not None:
                    scores = torch.cat((scores, options.sinks_H.float()[:, None]), 1)
                weights = scores.softmax(-1)[:, : last + 1 - first]
                mixed = torch.einsum("hc,chd->hd", weights, v[first : last + 1, :, : self.value_dim])
                out_THD[token] = mixed.to(out_THD.dtype)
        return out_THD.flatten(1)

    def copy_blocks(self, src_P: Tensor, dst_P: Tensor) -> None:
        for cache in (self.keys, self.values):
            blocks = cache.view(cache.shape[0], -1, self.block_size, *cache.shape[2:])
            blocks[:, dst_P.long()] = blocks[:, src_P.long()].clone()


class PagedSession:
    """Runs a model step by step over a cache whose blocks lie scattered: what a scheduler and runner would feed it.

    `step([(name, tokens), ...])` computes those tokens after what each named sequence has already, and returns the
    logits of every one of them, in the order given.
    """

    def __init__(self, model, backend=OracleAttention, block_size: int = 4, num_blocks: int = 128) -> None:
        spec = model.spec
        self.model = model
        self.block_size = block_size
        self.attention = backend(
            AttentionSpec(
                num_layers=spec.num_layers,
                num_heads=spec.num_heads,
                num_kv_heads=spec.num_kv_heads,
                head_dim=spec.head_dim,
                dtype=model.dtype,
                device=model.device,
                block_size=block_size,
                max_model_len=num_blocks * block_size,
                windows=tuple(dict.fromkeys(spec.windows)),
                chunked=spec.chunked,
                latent_dim=0 if spec.latent is None else spec.latent.rank,
            ),
            num_blocks,
        )
        # Block 0 is left out: a table's padding points at it, so reading padding as data finds NaN.
        self.free = torch.randperm(num_blocks - 1, generator=torch.Generator().manual_seed(0)).add(1).tolist()
        self.lengths: dict[str, int] = {}
        self.tables: dict[str, list[int]] = {}

    def step(self, parts: Sequence[tuple[str, Sequence[int]]]) -> list[Tensor]:
        batch, order = self.batch(parts)
        self.attention.plan(batch)
        with torch.inference_mode():
            logits = self.model.logits(self.model.forward(batch))
        by_name = dict(zip(order, logits.split([len(dict(parts)[name]) for name in order]), strict=True))
        return [by_name[name] for name, _ in parts]

    def batch(self, parts: Sequence[tuple[str, Sequence[int]]]) -> tuple[ForwardBatch, list[str]]:
        ordered = sorted(parts, key=lambda part: len(part[1]))  # single tokens first
        tokens, positions, slots, counts, contexts = [], [], [], [], []
        for name, ids in ordered:
            start = self.lengths.get(name, 0)
            table = self.tables.setdefault(name, [])
            while len(table) * self.block_size < start + len(ids):
                table.append(self.free.pop())
            for position in range(start, start + len(ids)):
                positions.append(position)
                slots.append(table[position // self.block_size] * self.block_size + position % self.block_size)
            tokens += ids
            counts.append(len(ids))
            contexts.append(start + len(ids))
            self.lengths[name] = start + len(ids)
        width = max(len(self.tables[name]) for name, _ in ordered)
        table_NB = [self.tables[name] + [0] * (width - len(self.tables[name])) for name, _ in ordered]
        single = sum(count == 1 for count in counts)
        device = self.model.device
        batch = ForwardBatch(
            token_ids_T=torch.tensor(tokens, device=device),
            positions_T=torch.tensor(positions, device=device),
            slots_T=torch.tensor(slots, device=device),
            query_start_N1=torch.tensor([0, *counts], device=device).cumsum(0).int(),
            context_lens_N=torch.tensor(contexts, dtype=torch.int32, device=device),
            block_table_NB=torch.tensor(table_NB, dtype=torch.int32, device=device),
            num_single=single,
            max_query_len=max(counts),
            max_context_len=max(contexts),
            attention=self.attention,
            query_lens=counts[single:],
            context_lens=contexts[single:],
        )
        return batch, [name for name, _ in ordered]
