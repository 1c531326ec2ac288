"""A step over a paged cache with random contents, for tests of attention kernels and backends."""

from __future__ import annotations

import numpy as np
import torch

from octavo.attention.base import AttentionSpec, ForwardBatch


def make_spec(heads, kv_heads, dim, dtype=torch.float32, device="cpu", block_size=16, max_len=4096) -> AttentionSpec:
    return AttentionSpec(1, heads, kv_heads, dim, dtype, torch.device(device), block_size, max_len)


def make_step(spec: AttentionSpec, steps: list[tuple[int, int]], num_blocks: int, seed: int = 0):
    """(batch, q, k, v, block table) for sequences of (tokens here, tokens in all), those with one token here first."""
    rng = np.random.default_rng(seed)
    steps = sorted(steps, key=lambda step: step[0] != 1)
    size, device = spec.block_size, spec.device
    width = max(-(-context // size) for _, context in steps)
    free = rng.permutation(num_blocks).astype(np.int32)
    table = np.zeros((len(steps), width), np.int32)
    used = 0
    for i, (_, context) in enumerate(steps):
        need = -(-context // size)
        table[i, :need] = free[used : used + need]
        used += need
    counts = np.array([count for count, _ in steps])
    contexts = np.array([context for _, context in steps])
    positions = np.concatenate([np.arange(end - n, end) for n, end in steps])
    owner = np.repeat(np.arange(len(steps)), counts)
    slots = table[owner, positions // size].astype(np.int64) * size + positions % size
    slots[positions < 0] = -1  # padding: sequences of context 0
    single = int((counts == 1).sum())
    tokens = len(positions)

    def tensor(values, dtype):
        return torch.from_numpy(np.ascontiguousarray(values)).to(device, dtype)

    batch = ForwardBatch(
        token_ids_T=torch.zeros(tokens, dtype=torch.int64, device=device),
        positions_T=tensor(positions, torch.int64),
        slots_T=tensor(slots, torch.int64),
        query_start_N1=tensor(np.concatenate(([0], np.cumsum(counts))), torch.int32),
        context_lens_N=tensor(contexts, torch.int32),
        block_table_NB=tensor(table, torch.int32),
        num_single=single,
        max_query_len=int(counts.max()),
        max_context_len=int(contexts.max()),
        attention=None,
        query_lens=counts[single:].tolist(),
        context_lens=contexts[single:].tolist(),
    )
    generator = torch.Generator().manual_seed(seed)
    total = spec.num_heads + 2 * spec.num_kv_heads
    # As a fused projection gives them: q, k and v of a token beside each other, so none is contiguous.
    qkv = torch.randn(tokens, total, spec.head_dim, generator=generator).to(device, spec.dtype)
    q, k, v = qkv.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], 1)
    return batch, q, k, v


def fill(*caches: torch.Tensor, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for cache in caches:
        cache.copy_(torch.randn(cache.shape, generator=generator).to(cache))
