"""Prefill over a paged KV cache on NVIDIA's Hopper: warps that load beside warps that compute.

The same work as `paged_attention_prefill`, in the same order, in Gluon, Triton's lower level. One warp brings keys and
values to shared memory with the tensor memory accelerator, a block of the cache at a time, as far ahead as there is
room. Two groups of four warps compute, each for half of the rows: the scores of a tile are multiplied while the
weighted values of the tile before it are, and the softmax of one group runs beside the products of the other.

Tiles are taken from the last to the first, so that the masked ones, on the diagonal, come first.

Legend: T tokens, N sequences, H query heads, K key/value heads, G = H / K, D head size, M rows of a program.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

# Three names of Triton 3.6 that later ones changed.
barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
load_box = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
RENAMED = gl.constexpr(hasattr(gl.shared_memory_descriptor, "reinterpret"))

COLUMNS = gl.constexpr(64)  # of a row in shared memory: 128 bytes, the widest swizzle
ROWS = gl.constexpr(64)  # of queries of a group of warps: those of one matrix instruction
LOWEST = gl.constexpr(-1e30)
box_layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)


@gluon.jit
def _pieces(tiles, desc, NUMBER: gl.constexpr, BLOCK_SIZE: gl.constexpr):
    """Tiles in shared memory as the boxes that are copied there: rows of COLUMNS follow each other, then columns."""
    if RENAMED:
        return tiles.reinterpret(tiles.dtype, [NUMBER, BLOCK_SIZE, COLUMNS], desc.layout)
    else:
        return tiles._reinterpret(tiles.dtype, [NUMBER, BLOCK_SIZE, COLUMNS], desc.layout)


@gluon.jit
def _load_tile(
    desc, pieces, ready, free, turn, tile, table_ptr, head, last_block,
    STAGES: gl.constexpr, BLOCK_SIZE: gl.constexpr, HEAD_DIM: gl.constexpr, TILE: gl.constexpr,
):  # fmt: skip
    """Brings a tile's blocks to the stage of this turn, once it is free. Past the last block it is read again."""
    BLOCKS: gl.constexpr = TILE // BLOCK_SIZE
    PARTS: gl.constexpr = HEAD_DIM // COLUMNS
    stage = turn % STAGES
    mbarrier.wait(free.index(stage), (turn // STAGES & 1) ^ 1)
    mbarrier.expect(ready.index(stage), TILE * HEAD_DIM * 2)
    for i in gl.static_range(BLOCKS):
        block = gl.load(table_ptr + gl.minimum(tile * BLOCKS + i, last_block))
        for part in gl.static_range(PARTS):
            load_box(
                desc,
                [block * BLOCK_SIZE, head * HEAD_DIM + part * COLUMNS],
                ready.index(stage),
                pieces.index((stage * PARTS + part) * BLOCKS + i),
            )


@gluon.jit
def _load(
    k_desc, v_desc, keys, values, k_ready, k_free, v_ready, v_free, table_ptr, head, tiles, last_block,
    STAGES: gl.constexpr, BLOCK_SIZE: gl.constexpr, HEAD_DIM: gl.constexpr, TILE: gl.constexpr,
):  # fmt: skip
    """In the order of use: the keys of a tile before the values of the one before it."""
    k_pieces = _pieces(keys, k_desc, STAGES * (HEAD_DIM // COLUMNS) * (TILE // BLOCK_SIZE), BLOCK_SIZE)
    v_pieces = _pieces(values, v_desc, STAGES * (HEAD_DIM // COLUMNS) * (TILE // BLOCK_SIZE), BLOCK_SIZE)
    for turn in range(tiles + 1):
        if turn < tiles:
            _load_tile(
                k_desc, k_pieces, k_ready, k_free, turn, tiles - 1 - turn, table_ptr, head, last_block,
                STAGES, BLOCK_SIZE, HEAD_DIM, TILE,
            )  # fmt: skip
        if turn > 0:
            _load_tile(
                v_desc, v_pieces, v_ready, v_free, turn - 1, tiles - turn, table_ptr, head, last_block,
                STAGES, BLOCK_SIZE, HEAD_DIM, TILE,
            )  # fmt: skip


@gluon.jit
def _weigh(s, maximum, q_pos, lowest, first, scale, TILE: gl.constexpr, layout: gl.constexpr):
    """Softmax weights of a tile that begins at token `first`, and the new maxima. `lowest` is the first of `q_pos`."""
    if first + TILE > lowest + 1:
        token = first + gl.arange(0, TILE, gl.SliceLayout(0, layout))
        s = gl.where(token[None, :] <= q_pos[:, None], s, float("-inf"))
    higher = gl.maximum(maximum, gl.max(s, 1) * scale)
    return gl.exp2(gl.fma(s, scale, -higher[:, None])), higher


@gluon.jit
def _compute(
    q_ptr, out_ptr, queries, keys, values, k_ready, k_free, v_ready, v_free, start, done, count, context, head,
    q_stride_t, tiles, scale, group,
    STAGES: gl.constexpr, KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HEAD_DIM: gl.constexpr, TILE: gl.constexpr,
):  # fmt: skip
    """The rows of one group of warps, from their queries to their output."""
    dtype: gl.constexpr = keys.dtype
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    wide: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])
    first_row = group * ROWS

    row = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, wide))
    dim = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, wide))
    index = done + row // GROUP
    token = (start + index).to(gl.int64)
    column = (head * GROUP + row % GROUP)[:, None] * HEAD_DIM + dim[None, :]
    rows = (index < count) & (row < 2 * ROWS // GROUP * GROUP)
    present = rows[:, None] & (dim < HEAD_DIM)[None, :]
    q = gl.load(q_ptr + token[:, None] * q_stride_t + column, mask=present, other=0.0)
    mine = queries.index(group)
    mine.store(q)
    fence_async_shared()
    barrier()

    q_pos = context - count + done + (first_row + gl.arange(0, ROWS, gl.SliceLayout(1, s_layout))) // GROUP
    lowest = context - count + done + first_row // GROUP
    maximum = gl.full([ROWS], LOWEST, gl.float32, gl.SliceLayout(1, s_layout))
    acc = gl.zeros([ROWS, HEAD_DIM], gl.float32, o_layout)
    nothing = gl.zeros([ROWS, TILE], gl.float32, s_layout)

    mbarrier.wait(k_ready.index(0), 0)
    s = warpgroup_mma(mine, keys.index(0).permute((1, 0)), nothing, use_acc=False, is_async=True)
    s = warpgroup_mma_wait(0, deps=[s])
    barrier()
    mbarrier.arrive(k_free.index(0), count=1)
    weights, maximum = _weigh(s, maximum, q_pos, lowest, (tiles - 1) * TILE, scale, TILE, s_layout)
    total = gl.sum(weights, 1)
    p = gl.convert_layout(weights.to(dtype), p_layout)
    if tiles * TILE > context:
        # What others left behind the context may be no numbers, and 0 times those is none. Both groups do the same.
        mbarrier.wait(v_ready.index(0), 0)
        v = values.index(0).load(wide)
        position = (tiles - 1) * TILE + gl.arange(0, TILE, gl.SliceLayout(1, wide))
        values.index(0).store(gl.where((position < context)[:, None], v, 0.0))
        fence_async_shared()
        barrier()
    for turn in range(1, tiles):
        stage = turn % STAGES
        before = (turn - 1) % STAGES
        mbarrier.wait(k_ready.index(stage), turn // STAGES & 1)
        s = warpgroup_mma(mine, keys.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
        mbarrier.wait(v_ready.index(before), (turn - 1) // STAGES & 1)
        acc = warpgroup_mma(p, values.index(before), acc, is_async=True)
        s = warpgroup_mma_wait(1, deps=[s])
        barrier()
        mbarrier.arrive(k_free.index(stage), count=1)
        weights, higher = _weigh(s, maximum, q_pos, lowest, (tiles - 1 - turn) * TILE, scale, TILE, s_layout)
        fade = gl.exp2(maximum - higher)
        total = total * fade + gl.sum(weights, 1)
        maximum = higher
        acc, p = warpgroup_mma_wait(0, deps=[acc, p])
        barrier()
        mbarrier.arrive(v_free.index(before), count=1)
        acc = acc * gl.convert_layout(fade, gl.SliceLayout(1, o_layout))[:, None]
        p = gl.convert_layout(weights.to(dtype), p_layout)
    last = (tiles - 1) % STAGES
    mbarrier.wait(v_ready.index(last), (tiles - 1) // STAGES & 1)
    acc = warpgroup_mma(p, values.index(last), acc, is_async=True)
    acc, p = warpgroup_mma_wait(0, deps=[acc, p])
    total = gl.where(total > 0, total, 1.0)
    value = acc / gl.convert_layout(total, gl.SliceLayout(1, o_layout))[:, None]
    value = gl.convert_layout(value.to(dtype), wide)
    gl.store(out_ptr + token[:, None] * (KV_HEADS * GROUP * HEAD_DIM) + column, value, mask=present)


@gluon.jit(
    do_not_specialize=["num_sequences"], do_not_specialize_on_alignment=["start_ptr", "context_ptr", "table_ptr"]
)
def prefill_kernel(
    q_ptr,
    out_ptr,
    start_ptr,  # [N + 1] cumulative tokens of the sequences
    context_ptr,  # [N]
    table_ptr,
    k_desc,  # of a layer's keys as [tokens, K * D], in boxes of a block and COLUMNS
    v_desc,
    num_sequences,
    q_stride_t,
    table_stride,
    scale,
    BLOCK_SIZE: gl.constexpr,
    KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    TILE: gl.constexpr,
    STAGES: gl.constexpr,
):
    TOKENS: gl.constexpr = 2 * ROWS // GROUP
    head = gl.program_id(0)
    tile = gl.num_programs(1) - 1 - gl.program_id(1)
    base = gl.load(start_ptr)
    low = 0
    high = num_sequences
    while high - low > 1:
        middle = (low + high) // 2
        begins = (gl.load(start_ptr + middle) - base) // TOKENS + middle
        if begins <= tile:
            low = middle
        else:
            high = middle
    start = gl.load(start_ptr + low)
    count = gl.load(start_ptr + low + 1) - start
    context = gl.load(context_ptr + low)
    done = (tile - ((start - base) // TOKENS + low)) * TOKENS
    if done < count:
        layout: gl.constexpr = k_desc.layout
        queries = gl.allocate_shared_memory(k_desc.dtype, [2, ROWS, HEAD_DIM], layout)
        keys = gl.allocate_shared_memory(k_desc.dtype, [STAGES, TILE, HEAD_DIM], layout)
        values = gl.allocate_shared_memory(v_desc.dtype, [STAGES, TILE, HEAD_DIM], layout)
        k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        for i in gl.static_range(STAGES):
            mbarrier.init(k_ready.index(i), count=1)
            mbarrier.init(v_ready.index(i), count=1)
            mbarrier.init(k_free.index(i), count=2)
            mbarrier.init(v_free.index(i), count=2)
        fence_async_shared()
        end = gl.minimum(context - count + done + TOKENS, context)
        tiles = gl.maximum(gl.cdiv(end, TILE), 1)  # none would have the groups wait for ever
        table_ptr += low.to(gl.int64) * table_stride
        last_block = (context - 1) // BLOCK_SIZE
        gl.warp_specialize(
            [
                (_compute, (
                    q_ptr, out_ptr, queries, keys, values, k_ready, k_free, v_ready, v_free, start, done, count,
                    context, head, q_stride_t, tiles, scale, 0, STAGES, KV_HEADS, GROUP, HEAD_DIM, TILE,
                )),
                (_compute, (
                    q_ptr, out_ptr, queries, keys, values, k_ready, k_free, v_ready, v_free, start, done, count,
                    context, head, q_stride_t, tiles, scale, 1, STAGES, KV_HEADS, GROUP, HEAD_DIM, TILE,
                )),
                (_load, (
                    k_desc, v_desc, keys, values, k_ready, k_free, v_ready, v_free, table_ptr, head, tiles,
                    last_block, STAGES, BLOCK_SIZE, HEAD_DIM, TILE,
                )),
            ],
            [4, 1],
            [240, 24],
        )  # fmt: skip
