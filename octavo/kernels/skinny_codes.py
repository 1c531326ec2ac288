"""Products of rows of input with quantised weights, in Triton, for up to some hundred rows.

y = x W^T with W = code * scale + offset, a scale for each row and group of columns. What is read of W is its codes, and
with few rows of x that is nearly all that is read: then making floats of the codes costs more than reading them. So x
comes in codes as well (`octavo.kernels.row_codes`), tensor cores multiply 8-bit by 8-bit numbers, and 4 bits become the
upper half of a byte by a shift. With many rows tensor cores are what counts: a pair of codes is twice the work, and
integers are made floats of 16 bits, for each product once.

Weights are the left operand: 64 rows of them are what Hopper's instruction wants, however few rows x has. Where blocks
of weight rows are too few for the GPU, K is split; the program that arrives last at a block adds the parts in their
order, so that a result never varies.

Legend: M rows of input, E input size (K in a kernel), O output size: rows of the weight, G groups of a row, P bytes of
a row of W, rows C = M * parts of x. N and K in `CodeMatrix` are O and E.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.chain import CHAIN
from octavo.kernels.codes import CodeMatrix
from octavo.kernels.quant_linear import halves, offset_of
from octavo.kernels.row_codes import RowCodes
from octavo.kernels.skinny_linear import TILE_ROWS, counters


@dataclass(frozen=True, slots=True)
class Form:
    tokens: int  # rows of x of a program, as many as there are if these are fewer
    rows: int  # of W of a program
    block: int  # of K, all of one group
    unroll: int  # blocks of a step of the pipeline
    splits: int  # of K
    stages: int
    early: int = 0  # blocks whose weights are asked for before the wait of a chained launch
    warps: int = 4


# Four bytes at a time, which compilers miss: in the order of the bytes, the low halves and the high ones.
BYTES_OF_HALVES = tl.constexpr("shl.b32 $0, $2, 4; and.b32 $0, $0, 0xF0F0F0F0; and.b32 $1, $2, 0xF0F0F0F0;")
FLOATS_OF_HALVES = """
{
    .reg .b32 a, b, c, d, one, less;
    mov.b32 one, ONE;
    mov.b32 less, LESS;
    prmt.b32 a, $4, 0, 0x4140;
    prmt.b32 b, $4, 0, 0x4342;
    shr.u32 c, a, 4;
    shr.u32 d, b, 4;
    lop3.b32 a, a, 0x000F000F, MAGIC, 0x6A;
    lop3.b32 b, b, 0x000F000F, MAGIC, 0x6A;
    lop3.b32 c, c, 0x000F000F, MAGIC, 0x6A;
    lop3.b32 d, d, 0x000F000F, MAGIC, 0x6A;
    fma.rn.KIND $0, a, one, less;
    fma.rn.KIND $1, b, one, less;
    fma.rn.KIND $2, c, one, less;
    fma.rn.KIND $3, d, one, less;
}
"""


def _filled(**words: str) -> tl.constexpr:
    text = FLOATS_OF_HALVES
    for name, word in words.items():
        text = text.replace(name, word)
    return tl.constexpr(text)


# A half goes to the last bits of 128 or 1024, whose last four count ones, plus 8; then that is taken off again.
BFLOATS = _filled(MAGIC="0x43084308", KIND="bf16x2", ONE="0x3F803F80", LESS="0xC308C308")
FLOATS = _filled(MAGIC="0x64086408", KIND="f16x2", ONE="0x3C003C00", LESS="0xE408E408")


@triton.jit
def parts(code, kind: tl.constexpr, PTX: tl.constexpr):
    """The codes of bytes, low halves and high ones: as int8 16 times, else as floats of 16 bits."""
    if not PTX:
        if kind != tl.int8:
            return halves(code, kind)
        return (code << 4).to(tl.int8, bitcast=True), (code & 0xF0).to(tl.int8, bitcast=True)
    elif kind == tl.int8:
        return tl.inline_asm_elementwise(
            BYTES_OF_HALVES, "=&r,=r,r", [code], dtype=(tl.int8, tl.int8), is_pure=True, pack=4
        )
    elif kind == tl.bfloat16:
        return tl.inline_asm_elementwise(
            BFLOATS, "=&r,=&r,=&r,=&r,r", [code], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    else:
        return tl.inline_asm_elementwise(
            FLOATS, "=&r,=&r,=&r,=&r,r", [code], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )


@triton.jit
def scaled(weight, factor, shift, OFFSET: tl.constexpr):
    """In the weight's own 16 bits: as far off as a matrix that is decoded first."""
    weight = weight * factor.to(weight.dtype)[:, None]
    if OFFSET:
        weight += shift.to(weight.dtype)[:, None]
    return weight


@triton.jit
def of_block(
    column, tiles, rows, stride, inside,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr, ABOUT: tl.constexpr,
):  # fmt: skip
    """The scales [R], the offsets [R] and what is told of x [C] for the block of columns that begins here."""
    scale_tile, offset_tile, about_tile = tiles
    scale = tl.load(scale_tile + column // GROUP * rows)
    offset = scale
    about = scale
    if OFFSET:
        offset = tl.load(offset_tile + column // GROUP * rows)
    if ABOUT:
        about = tl.load(about_tile + column // BLOCK * stride, mask=inside, other=0.0)
    return scale, offset, about


@triton.jit
def add_tile(
    sums, x_tile, code, of_tile, inside,
    HALVES: tl.constexpr, BLOCK: tl.constexpr, GROUPED: tl.constexpr, OFFSET: tl.constexpr, ABOUT: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Goes on with the sums [R, C] over BLOCK columns, all of one group. `of_tile` is from `of_block`."""
    scale, offset, about = of_tile
    x = tl.load(x_tile, mask=inside, other=0.0)
    CODES: tl.constexpr = x.dtype == tl.int8 or x.dtype == tl.float8e4nv
    kind: tl.constexpr = tl.int32 if x.dtype == tl.int8 else tl.float32
    factor = scale.to(tl.float32)
    shift = factor
    if OFFSET:
        shift = offset_of(offset, factor)
    into = sums
    if GROUPED and CODES:
        into = tl.zeros(sums.shape, kind)
    if HALVES:
        far = tl.load(x_tile + BLOCK // 2, mask=inside, other=0.0)
        low, high = parts(code, x.dtype, PTX)
        if GROUPED and not CODES:
            low = scaled(low, factor, shift, OFFSET)
            high = scaled(high, factor, shift, OFFSET)
        into = tl.dot(low, tl.trans(x), into, out_dtype=kind)
        into = tl.dot(high, tl.trans(far), into, out_dtype=kind)
    elif x.dtype == tl.float8e4nv:  # the accumulators of Hopper's tensor cores lack bits
        into = tl.dot(code, tl.trans(x), into, max_num_imprecise_acc=BLOCK)
    else:
        weight = code.to(x.dtype)
        if GROUPED and not CODES:
            weight = scaled(weight, factor, shift, OFFSET)
        into = tl.dot(weight, tl.trans(x), into, out_dtype=kind)
    if GROUPED and CODES:
        by = (factor * 0.0625 if HALVES else factor)[:, None]
        if ABOUT and not OFFSET:
            by = by * about[None, :]
        into = sums + into.to(tl.float32) * by
        if OFFSET:
            into += shift[:, None] * about[None, :]
    return into


@triton.jit(do_not_specialize=["count"])
def tiles_kernel(
    x_ptr,  # [C, K]
    x_scale_ptr,  # [M], of codes that have a scale a row
    code_ptr,  # [rows, P]
    scale_ptr,  # [G, rows]
    offset_ptr,  # likewise
    about_ptr,  # [K / BLOCK, C], `about_stride` apart: sums of codes that meet offsets, or else scales
    out_ptr,  # [M, O]
    partial_ptr,  # float32 [SPLITS, M, rows]
    arrived_ptr,  # int32, one a block; zero before and after
    count,  # M
    rows,
    about_stride,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    M_P2: tl.constexpr,
    PARTS: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
    HALVES: tl.constexpr,
    OFFSET: tl.constexpr,
    PTX: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """A program a block of R weight rows and of tokens, and a part of K."""
    PART: tl.constexpr = K // SPLITS
    EACH: tl.constexpr = 2 if HALVES else 1  # codes of a byte
    BYTES: tl.constexpr = BLOCK // EACH
    GROUP: tl.constexpr = K // GROUPS
    GROUPED: tl.constexpr = GROUPS > 1 or about_ptr is not None or OFFSET
    INTEGER: tl.constexpr = x_ptr.dtype.element_ty == tl.int8
    C_P2: tl.constexpr = M_P2 * PARTS
    block = tl.program_id(0)
    split = tl.program_id(1)
    first = tl.program_id(2) * M_P2
    line = first * PARTS + tl.arange(0, C_P2)
    of_x = line < count * PARTS
    inside = of_x[:, None]
    row = block * R + tl.arange(0, R)
    ABOUT: tl.constexpr = about_ptr is not None
    of_row = scale_ptr + row, scale_ptr if not OFFSET else offset_ptr + row, about_ptr + line if ABOUT else scale_ptr
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
    scale, offset, about = of_block(split * PART, of_row, rows, about_stride, of_x, BLOCK, GROUP, OFFSET, ABOUT)
    for step in tl.range(0, PART - EARLY * BLOCK, BLOCK * UNROLL, num_stages=STAGES):
        for i in tl.static_range(UNROLL):
            start = step + i * BLOCK
            code = tl.load(code_tile + start // EACH)
            of_tile = scale, offset, about
            if GROUPED:  # asked for early: no pipeline is made for 16 bits
                column = split * PART + tl.minimum(start + BLOCK, PART - BLOCK)
                scale, offset, about = of_block(column, of_row, rows, about_stride, of_x, BLOCK, GROUP, OFFSET, ABOUT)
            sums = add_tile(sums, x_tile + start, code, of_tile, inside, HALVES, BLOCK, GROUPED, OFFSET, ABOUT, PTX)
    for i in tl.static_range(EARLY):
        end = PART - (i + 1) * BLOCK
        of_tile = of_block(split * PART + end, of_row, rows, about_stride, of_x, BLOCK, GROUP, OFFSET, ABOUT)
        scale = of_tile[0]
        sums = add_tile(sums, x_tile + end, tiles[i], of_tile, inside, HALVES, BLOCK, GROUPED, OFFSET, ABOUT, PTX)
    token = first + tl.arange(0, M_P2)
    inside = (token < count)[:, None]
    y = tl.trans(sums.to(tl.float32))
    if PARTS == 2:
        unit = 1.0 - tl.arange(0, 2) * (0.99609375 if INTEGER else 0.9375)  # 1 and 1 / FINER
        y = tl.sum(tl.reshape(y, [M_P2, 2, R]) * unit[None, :, None], 1)
    if x_scale_ptr is not None:
        y *= tl.load(x_scale_ptr + token, mask=token < count, other=0.0)[:, None]
    if not GROUPED:
        y *= scale.to(tl.float32)[None, :] * (0.0625 if HALVES and INTEGER else 1.0)
    is_last = True
    spot = token.to(tl.int64)[:, None] * rows + row[None, :]
    if SPLITS > 1:
        tl.store(partial_ptr + split * count * rows + spot, y, mask=inside)
        tl.debug_barrier()  # all of this program's part is written before it says so
        arrived = arrived_ptr + tl.program_id(2) * tl.num_programs(0) + block
        is_last = tl.atomic_add(arrived, 1, sem="acq_rel") == SPLITS - 1
        if is_last:
            tl.store(arrived, 0)
            y = tl.zeros([M_P2, R], tl.float32)
            for part in range(SPLITS):
                y += tl.load(partial_ptr + part * count * rows + spot, mask=inside, other=0.0, cache_modifier=".cg")
    if is_last:
        tl.store(out_ptr + spot, y.to(out_ptr.dtype.element_ty), mask=inside)


def choose(tokens: int, parts: int, codes: CodeMatrix, sms: int) -> Form | None:
    """How to multiply so many rows in codes, by sweeps on an H200; None where the kernel cannot, or is slower."""
    n, k = codes.shape
    block = (
        codes.block
        or codes.summed
        or next((size for size in (256, 128, 64, 32) if codes.group % size == 0 and k % size == 0), 0)
    )
    lines = tokens * parts
    if not 1 <= lines <= 128 or n % TILE_ROWS or k % 128 or block < (64 if codes.block else 32):
        return None
    blocks = n // TILE_ROWS
    if codes.block and lines <= 64:
        splits = _splits(blocks, 5 * sms // 2, k, 2 * block)
        return Form(tokens, TILE_ROWS, block, 2 - k // (splits * block) % 2, splits, stages=4)
    if codes.block:
        return _wide(tokens, codes, sms)
    if lines > 64:
        tokens = 64 // parts if 2 * blocks <= sms else tokens
        return Form(tokens, TILE_ROWS, block if blocks <= 2 * sms else min(block, 128), 1, 1, stages=4)
    step = max(block, 256)  # groups are smaller: then two blocks, for as many bytes under way
    splits = _splits(blocks, 3 * sms // 2 if lines <= 16 else 2 * sms // 3, k, step)
    unroll = 2 if lines <= 32 and block < step and k % (splits * 2 * block) == 0 else 1
    if lines > 32 and blocks > 2 * sms:
        block = min(block, 128)
    return Form(tokens, TILE_ROWS, block, unroll, splits, stages=4)


def choose_for_floats(tokens: int, codes: CodeMatrix, sms: int) -> Form | None:
    """Likewise of rows of 16-bit floats, and integer codes."""
    n, k = codes.shape
    if codes.kind == "fp8" or not 1 <= tokens <= 256 or n % TILE_ROWS or k % 128 or codes.group % 64:
        return None
    return _wide(tokens, codes, sms)


def _wide(tokens: int, codes: CodeMatrix, sms: int) -> Form:
    n, k = codes.shape
    rows = 128 if n % 128 == 0 else TILE_ROWS
    block = codes.block or (128 if codes.group % 128 == 0 else 64)
    tokens = min(128, tokens)
    splits = _splits(n // rows * triton.cdiv(tokens, 128), 2 * sms // 3, k, 2 * block)
    return Form(tokens, rows, block, 1, splits, stages=4, warps=rows // 16)


def _splits(blocks: int, least: int, k: int, step: int) -> int:
    """Of K, so that there are at least so many programs, if each has a step or more."""
    splits = 1
    while splits * blocks < least and k % (2 * splits * step) == 0:
        splits *= 2
    return splits


def skinny_codes(x: RowCodes | Tensor, codes: CodeMatrix, *, form: Form, chained: bool = False) -> Tensor:
    """x W^T as [M, O] in the type of the rows that x is or was made of. Integers are multiplied by int8 or floats of 16
    bits, float8 by float8."""
    m, (rows, k), device = len(x), codes.shape, codes.code_NP.device
    code, scale_M, about, parts = x, None, None, 1
    if isinstance(x, RowCodes):
        code, scale_M, about, parts = x.code_MPE, x.scale_M, x.sum_BMP, x.code_MPE.shape[1]
        if scale_M.dim() == 2:
            assert codes.offset_GN is None and parts == 1
            scale_M, about = None, scale_M
        assert codes.offset_GN is None or about is not None
        assert about is None or k == len(about) * form.block
    assert code.is_contiguous() and codes.code_NP.is_contiguous() and code.shape[-1] == k
    assert (code.dtype == torch.float8_e4m3fn) == (codes.kind == "fp8")
    assert rows % form.rows == 0 and k % (form.splits * form.block) == 0
    steps = k // (form.splits * form.block) - form.early
    assert steps > 0 and steps % form.unroll == 0
    tokens = max(16 // parts, min(form.tokens, triton.next_power_of_2(m)))
    tokens = triton.next_power_of_2(tokens)
    split = form.splits > 1
    out_MO = torch.empty((m, rows), dtype=x.dtype, device=device)
    tiles_kernel[(rows // form.rows, form.splits, triton.cdiv(m, tokens))](
        code,
        scale_M,
        codes.code_NP,
        codes.scale_GN,
        codes.offset_GN,
        about,
        out_MO,
        torch.empty((form.splits, m, rows), dtype=torch.float32, device=device) if split else None,
        counters(device) if split else None,
        m,
        rows,
        0 if about is None else about.stride(0),
        K=k,
        GROUPS=len(codes.scale_GN),
        M_P2=tokens,
        PARTS=parts,
        R=form.rows,
        BLOCK=form.block,
        UNROLL=form.unroll,
        SPLITS=form.splits,
        STAGES=form.stages,
        EARLY=form.early,
        HALVES=bool(codes.block),
        OFFSET=codes.offset_GN is not None,
        PTX=device.type == "cuda" and torch.version.hip is None,
        num_warps=form.warps,
        **CHAIN[chained],
    )
    return out_MO
