"""Measures what a step needs beside weights and KV cache, by running the largest one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from octavo.attention.base import AttentionBackend, AttentionSpec
from octavo.core.config import CacheConfig
from octavo.core.params import SamplingParams
from octavo.core.plan import RowJoin, StepPlan
from octavo.models.decoder import Decoder
from octavo.runner.runner import Runner


def largest_step(cache: CacheConfig, max_tokens: int, sample: bool) -> StepPlan:
    """As many rows as there are, `max_tokens` tokens in all; if sampled, every row with every cut of the vocabulary."""
    groups = len(cache.windows)
    rows = min(cache.max_rows, cache.num_blocks // groups, max_tokens)
    counts = np.full(rows, max_tokens // rows, np.int32)
    counts[: max_tokens % rows] += 1
    counts = np.minimum(np.sort(counts), cache.max_model_len)
    per_row = -(-counts // cache.block_size)
    blocks = np.arange(groups * per_row.sum(), dtype=np.int32)
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=0)  # a cut that needs every token
    total = int(counts.sum())
    table_rows = np.repeat(np.arange(rows, dtype=np.int32), per_row)
    table_index = np.concatenate([np.arange(n, dtype=np.int32) for n in per_row])
    of_group = cache.blocks_per_row * np.repeat(np.arange(groups, dtype=np.int32), len(table_index))
    return StepPlan(
        rows_N=np.arange(rows, dtype=np.int32),
        starts_N=np.zeros(rows, np.int32),
        counts_N=counts,
        epochs_N=np.zeros(rows, np.int32),
        num_decodes=0,
        chunk_tokens_C=np.zeros(total, np.int32),
        chunk_targets_C=np.full(total, -1, np.int32),
        sampled_S=np.arange(rows if sample else 0, dtype=np.int32),
        steady=False,
        joins=[RowJoin(row, params, 0, np.zeros(1, np.int32), 1, []) for row in range(rows)],
        table_rows_D=np.tile(table_rows, groups),
        table_index_D=np.tile(table_index, groups) + of_group,
        table_blocks_D=blocks,
    )


def measure_workspace(
    model: Decoder, spec: AttentionSpec, backend: type[AttentionBackend], cache: CacheConfig, max_tokens: int
) -> tuple[int, int]:
    """Bytes of CUDA memory that the largest step takes and gives back: in the model, and on top of it in the sampler.

    Also compiles the kernels that the step uses.
    """
    blocks = (-(-max_tokens // cache.block_size) + cache.max_rows) * len(cache.windows)
    probe = replace(cache, num_blocks=blocks, prefix_caching=False, debug=False)
    runner = Runner(model, probe, backend(spec, blocks), spec.device)
    peaks = []
    for sample in (False, True):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        runner.execute(largest_step(probe, max_tokens, sample)).wait()
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    forward, everything = peaks
    return forward, max(0, everything - forward)
