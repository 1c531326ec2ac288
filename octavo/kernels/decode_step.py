"""The beginning and the end of a decode step, in Triton, so that a captured step needs nothing from the host.

`advance` moves every sequence of a batch one token on; `remember` keeps what was sampled as the rows' next input. The
state is that of `octavo.runner.graphs`. A batch is filled up with entries of the spare row: their context is 0 and
their slot -1, so that nothing is read or written for them.

Legend: N entries of the batch, R rows (the last one is the spare), G groups of layers, B blocks of a row in a group.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128  # entries of a program


@triton.jit(do_not_specialize=["count"])
def advance_kernel(
    rows_ptr,
    positions_ptr,  # int64, of the last token computed; grows by one
    next_positions_ptr,  # int64: of the token that will be sampled
    contexts_ptr,  # int32: tokens in the cache once this step has written its own
    slots_ptr,  # [G, at least N] int64
    tokens_ptr,  # int64: this step's input
    new_blocks_ptr,  # [G, at least N] int32: block that begins with this step's token, -1 for none; read once
    table_ptr,  # [N, G, B] int32, in the order of the batch
    row_table_ptr,  # [R, G * B] int32
    last_tokens_ptr,  # [R] int64
    count,
    spare_row,
    most,  # entries that there is room for
    width,  # B
    GROUPS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    entry = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = entry < count
    row = tl.load(rows_ptr + entry, mask=inside, other=0)
    live = inside & (row != spare_row)
    position = tl.load(positions_ptr + entry, mask=live, other=-1) + 1
    for group in tl.static_range(GROUPS):
        index = group * width + position // BLOCK_SIZE
        place = group * most + entry
        fresh = tl.load(new_blocks_ptr + place, mask=live, other=-1)
        begins = live & (fresh >= 0)
        tl.store(table_ptr + entry * (GROUPS * width) + index, fresh, mask=begins)
        tl.store(row_table_ptr + row * (GROUPS * width) + index, fresh, mask=begins)
        tl.store(new_blocks_ptr + place, tl.full([BLOCK], -1, tl.int32), mask=begins)
        known = tl.load(table_ptr + entry * (GROUPS * width) + index, mask=live & (fresh < 0), other=0)
        block = tl.where(fresh >= 0, fresh, known).to(tl.int64)
        slot = tl.where(live, block * BLOCK_SIZE + position % BLOCK_SIZE, -1)
        tl.store(slots_ptr + place, slot, mask=inside)
    tl.store(positions_ptr + entry, position, mask=live)
    tl.store(next_positions_ptr + entry, position + 1, mask=inside)
    tl.store(contexts_ptr + entry, tl.where(live, position + 1, 0).to(tl.int32), mask=inside)
    tl.store(tokens_ptr + entry, tl.load(last_tokens_ptr + row, mask=inside, other=0), mask=inside)


@triton.jit(do_not_specialize=["count"])
def remember_kernel(sampled_ptr, rows_ptr, last_tokens_ptr, out_ptr, count, BLOCK: tl.constexpr):
    entry = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = entry < count
    token = tl.load(sampled_ptr + entry, mask=inside, other=0)
    row = tl.load(rows_ptr + entry, mask=inside, other=0)
    # A row without a token (-1) ends; until then its next input only has to be a valid id.
    tl.store(last_tokens_ptr + row, tl.maximum(token, 0), mask=inside)
    tl.store(out_ptr + entry, token.to(tl.int32), mask=inside)


def advance(
    rows_N: Tensor,
    positions_N: Tensor,
    next_positions_N: Tensor,
    contexts_N: Tensor,
    slots_GN: Tensor,
    tokens_N: Tensor,
    new_blocks_GN: Tensor,
    table_NGB: Tensor,
    row_table_RB: Tensor,
    last_tokens_R: Tensor,
    block_size: int,
) -> None:
    """One token on: positions, contexts, slots and input tokens of all entries; new blocks go into both tables.

    What is by group may have room for more entries than there are."""
    _, groups, width = table_NGB.shape
    assert table_NGB.stride(0) == row_table_RB.stride(0) == groups * width
    assert slots_GN.stride(0) == new_blocks_GN.stride(0)
    count, spare_row = len(rows_N), len(last_tokens_R) - 1
    advance_kernel[(triton.cdiv(count, BLOCK),)](
        rows_N,
        positions_N,
        next_positions_N,
        contexts_N,
        slots_GN,
        tokens_N,
        new_blocks_GN,
        table_NGB,
        row_table_RB,
        last_tokens_R,
        count,
        spare_row,
        slots_GN.stride(0),
        width,
        GROUPS=groups,
        BLOCK_SIZE=block_size,
        BLOCK=BLOCK,
    )


def remember(sampled_N: Tensor, rows_N: Tensor, last_tokens_R: Tensor, out_N: Tensor) -> None:
    """`sampled` (int64, -1 where there is none) to the rows' last tokens, and as int32 to `out`."""
    count = len(rows_N)
    remember_kernel[(triton.cdiv(count, BLOCK),)](sampled_N, rows_N, last_tokens_R, out_N, count, BLOCK=BLOCK)


def reference_advance(
    rows_N: Tensor,
    positions_N: Tensor,
    new_blocks_GN: Tensor,
    table_NGB: Tensor,
    last_tokens_R: Tensor,
    block_size: int,
) -> dict[str, Tensor]:
    """What `advance` leaves, as new tensors."""
    live_N = rows_N != len(last_tokens_R) - 1
    positions_N = torch.where(live_N, positions_N + 1, positions_N)
    index_N = torch.where(live_N, positions_N, 0) // block_size
    table_NGB = table_NGB.clone()
    for group, i in torch.nonzero(live_N & (new_blocks_GN >= 0)).tolist():
        table_NGB[i, group, index_N[i]] = new_blocks_GN[group, i]
    block_GN = table_NGB[torch.arange(len(rows_N), device=rows_N.device), :, index_N].T.long()
    return {
        "positions": positions_N,
        "contexts": torch.where(live_N, positions_N + 1, 0).int(),
        "slots": torch.where(live_N, block_GN * block_size + positions_N % block_size, -1),
        "tokens": last_tokens_R[rows_N],
        "table": table_NGB,
    }
