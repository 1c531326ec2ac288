"""What a token's logprob needs of all others, in one pass over logits of any float type.

Legend: M positions, V vocabulary, C tiles of a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 8192
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def tally_kernel(
    logits_ptr,
    stride,
    tokens_ptr,  # int64 [M]
    sums_ptr,  # float32 [M, C]: logarithms of sums of exponentials
    counts_ptr,  # int32 [M, C]
    V: tl.constexpr,
    TILE: tl.constexpr,
):
    """A program a row and tile of it: what the tile adds up to, and how many of its tokens are likelier."""
    entry = tl.program_id(1).to(tl.int64)
    logits_ptr += entry * stride
    token = tl.program_id(0) * TILE + tl.arange(0, TILE)
    x = tl.load(logits_ptr + token, mask=token < V, other=-INFINITY).to(tl.float32)
    own = tl.load(logits_ptr + tl.load(tokens_ptr + entry)).to(tl.float32)
    most = tl.max(x, 0)
    relative = tl.where(most > -INFINITY, most, 0.0)  # a tile of -inf adds up to -inf
    at = entry * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums_ptr + at, relative + tl.log(tl.sum(tl.exp(x - relative), 0)))
    tl.store(counts_ptr + at, tl.sum((x > own).to(tl.int32), 0))


def tally(logits_MV: Tensor, tokens_M: Tensor) -> tuple[Tensor, Tensor]:
    """(logarithm of the sum of all exponentials, how many tokens are likelier than this one), of each row."""
    size, vocab_size = logits_MV.shape
    assert logits_MV.stride(1) == 1
    tile = min(TILE, triton.next_power_of_2(vocab_size))
    tiles = triton.cdiv(vocab_size, tile)
    sums_MC = torch.empty(size, tiles, dtype=torch.float32, device=logits_MV.device)
    counts_MC = torch.empty(size, tiles, dtype=torch.int32, device=logits_MV.device)
    if size:
        tally_kernel[(tiles, size)](
            logits_MV, logits_MV.stride(0), tokens_M, sums_MC, counts_MC, V=vocab_size, TILE=tile, num_warps=8
        )
    return sums_MC.logsumexp(1), counts_MC.sum(1)
