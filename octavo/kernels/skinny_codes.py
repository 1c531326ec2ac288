"""Products of few rows of input with quantised weights, in Triton: `tiles_kernel` of `octavo.kernels.skinny_linear`,
for codes.

y = x W^T with W = code * scale + offset, a scale for each row and group of columns. What is read is the codes, and to
make floats of them costs more than to read them. So x comes in codes as well (`octavo.kernels.row_codes`), tensor cores
multiply 8-bit by 8-bit numbers, and 4 bits become the upper half of a byte by a shift.

Legend: M rows of input, E input size (K in a kernel), O output size: rows of the weight, G groups of a row, P bytes of
a row of W, rows C = M * parts of codes of x. N and K in `CodeMatrix` are O and E.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.chain import CHAIN
from octavo.kernels.codes import CodeMatrix
from octavo.kernels.quant_linear import offset_of
from octavo.kernels.row_codes import RowCodes
from octavo.kernels.skinny_linear import TILE_ROWS, Tiles, counters

MOST_ROWS = 32


@triton.jit
def halves(code, PTX: tl.constexpr):
    """The codes of bytes, 16 times: low halves and high ones. With PTX four bytes at a time, which compilers miss."""
    if PTX:
        return tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 4; and.b32 $0, $0, 0xF0F0F0F0; and.b32 $1, $2, 0xF0F0F0F0;",
            "=&r,=r,r",
            [code],
            dtype=(tl.int8, tl.int8),
            is_pure=True,
            pack=4,
        )
    else:
        return (code << 4).to(tl.int8, bitcast=True), (code & 0xF0).to(tl.int8, bitcast=True)


@triton.jit
def add_tile(
    sums, x_tile, code, scale, offset, inside,
    HALVES: tl.constexpr, INTEGER: tl.constexpr, BLOCK: tl.constexpr, GROUPED: tl.constexpr, OFFSET: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Goes on with the sums [R, C] over BLOCK columns, all of one group."""
    x = tl.load(x_tile, mask=inside, other=0.0)
    kind: tl.constexpr = tl.int32 if INTEGER else tl.float32
    into = sums
    if GROUPED:
        into = tl.zeros(sums.shape, kind)
    if HALVES:
        far = tl.load(x_tile + BLOCK // 2, mask=inside, other=0.0)
        low, high = halves(code, PTX)
        into = tl.dot(low, tl.trans(x), into, out_dtype=kind)
        into = tl.dot(high, tl.trans(far), into, out_dtype=kind)
    elif INTEGER:
        into = tl.dot(code, tl.trans(x), into, out_dtype=kind)
    else:  # the accumulators of Hopper's tensor cores lack bits
        into = tl.dot(code, tl.trans(x), into, max_num_imprecise_acc=BLOCK)
    if GROUPED:
        scale = scale.to(tl.float32)
        into = sums + into.to(tl.float32) * (scale * 0.0625 if HALVES else scale)[:, None]
        if OFFSET:
            total = tl.sum(x.to(kind), 1)
            if HALVES:
                total += tl.sum(far.to(kind), 1)
            into += offset_of(offset, scale)[:, None] * total.to(tl.float32)[None, :]
    return into


@triton.jit(do_not_specialize=["count"])
def tiles_kernel(
    x_ptr,  # [C, K]
    x_scale_ptr,  # [M]
    code_ptr,  # [rows, P]
    scale_ptr,  # [G, rows]
    offset_ptr,  # likewise
    out_ptr,  # [M, O]
    partial_ptr,  # float32 [SPLITS, M, rows]
    arrived_ptr,  # int32, one a block of rows; zero before and after
    count,  # M
    rows,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    M_P2: tl.constexpr,
    PARTS: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
    HALVES: tl.constexpr,
    OFFSET: tl.constexpr,
    PTX: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """A program a block of R weight rows and a part of K."""
    PART: tl.constexpr = K // SPLITS
    EACH: tl.constexpr = 2 if HALVES else 1  # codes of a byte
    BYTES: tl.constexpr = BLOCK // EACH
    GROUP: tl.constexpr = K // GROUPS
    GROUPED: tl.constexpr = GROUPS > 1 or OFFSET
    INTEGER: tl.constexpr = x_ptr.dtype.element_ty == tl.int8
    C_P2: tl.constexpr = M_P2 * PARTS
    block = tl.program_id(0)
    split = tl.program_id(1)
    line = tl.arange(0, C_P2)
    inside = (line < count * PARTS)[:, None]
    row = block * R + tl.arange(0, R)
    scale_tile = scale_ptr + row
    offset_tile = scale_tile
    if OFFSET:
        offset_tile = offset_ptr + row
    place = tl.arange(0, BYTES)
    x_tile = x_ptr + line[:, None] * K + (split * PART + place)[None, :]
    code_tile = code_ptr + row.to(tl.int64)[:, None] * (K // EACH) + (split * (PART // EACH) + place)[None, :]
    tiles = ()
    for i in tl.static_range(EARLY):  # of the end of K: the pipeline below starts before they are needed
        last = tl.load(code_tile + (PART // EACH - (i + 1) * BYTES), eviction_policy="evict_first")
        tiles = tiles + (last,)
    if CHAINED:  # never inside a pipelined loop, whose first loads move before it
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    exact: tl.constexpr = tl.int32 if INTEGER and not GROUPED else tl.float32
    sums = tl.zeros([R, C_P2], exact)
    scale = tl.load(scale_tile + split * PART // GROUP * rows)
    offset = scale
    if OFFSET:
        offset = tl.load(offset_tile + split * PART // GROUP * rows)
    for start in tl.range(0, PART - EARLY * BLOCK, BLOCK, num_stages=STAGES):
        code = tl.load(code_tile + start // EACH)
        next_scale = scale
        next_offset = offset
        if GROUPED:  # asked for early: no pipeline is made for 16 bits
            group = (split * PART + tl.minimum(start + BLOCK, PART - BLOCK)) // GROUP * rows
            next_scale = tl.load(scale_tile + group)
            if OFFSET:
                next_offset = tl.load(offset_tile + group)
        sums = add_tile(sums, x_tile + start, code, scale, offset, inside, HALVES, INTEGER, BLOCK, GROUPED, OFFSET, PTX)
        scale = next_scale
        offset = next_offset
    for i in tl.static_range(EARLY):
        group = (split * PART + PART - (i + 1) * BLOCK) // GROUP * rows
        scale = tl.load(scale_tile + group)
        if OFFSET:
            offset = tl.load(offset_tile + group)
        x_end = x_tile + (PART - (i + 1) * BLOCK)
        sums = add_tile(sums, x_end, tiles[i], scale, offset, inside, HALVES, INTEGER, BLOCK, GROUPED, OFFSET, PTX)
    token = tl.arange(0, M_P2)
    inside = (token < count)[:, None]
    y = tl.trans(sums.to(tl.float32))
    if PARTS == 2:
        unit = 1.0 - tl.arange(0, 2) * (0.99609375 if INTEGER else 0.9375)  # 1 and 1 / FINER
        y = tl.sum(tl.reshape(y, [M_P2, 2, R]) * unit[None, :, None], 1)
    y *= tl.load(x_scale_ptr + token, mask=token < count, other=0.0)[:, None]
    if not GROUPED:
        y *= scale.to(tl.float32)[None, :] * (0.0625 if HALVES else 1.0)
    is_last = True
    spot = token[:, None] * rows + row[None, :]
    if SPLITS > 1:
        tl.store(partial_ptr + split * count * rows + spot, y, mask=inside)
        tl.debug_barrier()  # all of this program's part is written before it says so
        is_last = tl.atomic_add(arrived_ptr + block, 1, sem="acq_rel") == SPLITS - 1
        if is_last:
            tl.store(arrived_ptr + block, 0)
            y = tl.zeros([M_P2, R], tl.float32)
            for part in range(SPLITS):
                y += tl.load(partial_ptr + part * count * rows + spot, mask=inside, other=0.0, cache_modifier=".cg")
    if is_last:
        tl.store(out_ptr + spot, y.to(out_ptr.dtype.element_ty), mask=inside)


def choose(m: int, codes: CodeMatrix, sms: int) -> Tiles | None:
    """How to multiply m rows; None where the kernel cannot."""
    n, k = codes.shape
    tile = codes.block or next((size for size in (128, 64, 32) if codes.group % size == 0), 0)
    if not 1 <= m <= MOST_ROWS or n % TILE_ROWS or k % 128 or tile < (64 if codes.block else 32):
        return None
    blocks, splits = n // TILE_ROWS, 1
    while 2 * splits * blocks <= 3 * sms and k % (2 * splits * tile) == 0 and k // (2 * splits * tile) >= 4:
        splits *= 2
    return Tiles(tile, splits, stages=4, early=2 if k // (splits * tile) > 2 else 0)


def skinny_codes(x: RowCodes, codes: CodeMatrix, *, config: Tiles, chained: bool = False) -> Tensor:
    """x W^T as [M, O] in the type of the rows that x was made of. Integers multiply integers, float8 float8."""
    m, (rows, k), parts = len(x), codes.shape, x.code_MPE.shape[1]
    assert x.code_MPE.is_contiguous() and codes.code_NP.is_contiguous() and x.code_MPE.shape[2] == k
    assert (x.kind == "fp8") == (codes.kind == "fp8")
    assert rows % config.rows == 0 and k % (config.splits * config.block) == 0
    assert k // (config.splits * config.block) > config.early
    split = config.splits > 1
    device = x.scale_M.device
    out_MO = torch.empty((m, rows), dtype=x.dtype, device=device)
    tiles_kernel[(rows // config.rows, config.splits)](
        x.code_MPE,
        x.scale_M,
        codes.code_NP,
        codes.scale_GN,
        codes.offset_GN,
        out_MO,
        torch.empty((config.splits, m, rows), dtype=torch.float32, device=device) if split else None,
        counters(device) if split else None,
        m,
        rows,
        K=k,
        GROUPS=len(codes.scale_GN),
        M_P2=max(16 // parts, triton.next_power_of_2(m)),
        PARTS=parts,
        R=config.rows,
        BLOCK=config.block,
        SPLITS=config.splits,
        STAGES=config.stages,
        EARLY=config.early,
        HALVES=bool(codes.block),
        OFFSET=codes.offset_GN is not None,
        PTX=device.type == "cuda" and torch.version.hip is None,
        num_warps=config.warps,
        **CHAIN[chained],
    )
    return out_MO
