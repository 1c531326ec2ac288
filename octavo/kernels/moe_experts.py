"""Products of experts, in Triton. Grids follow from shapes, never from where tokens go; nothing is read on the host.

* `pairs`: few tokens. A program takes rows of the weights of one (token, expert) pair; each weight is read once where
  tokens share no expert; the second product adds a token's experts up.
* `tiles`: up to some tens of rows an expert. A program takes a tile of rows of one expert (see
  `octavo.kernels.moe_route`) and some of its outputs, weights as the left operand; programs beyond the last tile end at
  once. The gate is part of the first product. `combine` adds a token's experts up, in their order.
* For many rows `gather` lays an expert's rows together for torch's grouped products; `gate` is between them, and
  `combine` again behind.

Weights are plain, or codes that `octavo.kernels.moe_codes` makes numbers of.
Rounded where the separate operations round: after each product, and after an activation. Sums are float32.
Legend: T tokens, X experts, K experts of a token, P = T * K pairs, E hidden, I inner size, G = 2 I.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.moe_codes import by_row, columns, read
from octavo.kernels.skinny_linear import rounded


@triton.jit
def activated(gate, up, ACTIVATION: tl.constexpr, alpha, limit, kind: tl.constexpr):
    gate = rounded(gate, kind)
    up = rounded(up, kind)
    if ACTIVATION == "clamped":
        gate = tl.minimum(gate, limit)
        inner = gate * tl.sigmoid(alpha * gate)
        up = tl.minimum(tl.maximum(up, -limit), limit) + 1
    elif ACTIVATION == "silu":
        inner = gate * tl.sigmoid(gate)
    elif ACTIVATION == "gelu":
        inner = 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476))
    else:
        tl.static_assert(ACTIVATION == "gelu_tanh")
        inner = gate * tl.sigmoid(1.5957691216057308 * gate * (1 + 0.044715 * gate * gate))
    return rounded(inner, kind) * up


@triton.jit
def gate_up_pairs_kernel(
    x_ptr,  # [T, E]
    weight_ptr,  # [X, G, E]
    scale_ptr,  # of codes, [groups, rows]
    offset_ptr,  # likewise
    bias_ptr,  # [X, G]
    out_ptr,  # [P, I]
    experts_ptr,  # [P]
    alpha,
    limit,
    K: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    R: tl.constexpr,  # outputs of a program
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BIAS: tl.constexpr,
    CODE: tl.constexpr,
    LAYOUT: tl.constexpr,
    GROUP: tl.constexpr,
    SPAN: tl.constexpr,
    SAME: tl.constexpr,
    OFFSET: tl.constexpr,
    TOTAL: tl.constexpr,  # rows of the codes
    PTX: tl.constexpr,
    CHAINED: tl.constexpr,
):
    kind: tl.constexpr = out_ptr.dtype.element_ty
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    pair = tl.program_id(1).to(tl.int64)
    expert = tl.load(experts_ptr + pair).to(tl.int64)
    column = tl.program_id(0) * R + tl.arange(0, R)
    kept = column < OUT
    gate_row = 2 * column if INTERLEAVED else column
    up_row = gate_row + (1 if INTERLEAVED else OUT)
    HALVES: tl.constexpr = LAYOUT > 0
    place = columns(tl.arange(0, BLOCK // 2 if HALVES else BLOCK), LAYOUT)
    x_part = x_ptr + pair // K * IN + place
    first = expert * (2 * OUT)
    weight_part = weight_ptr + first * IN
    gates = tl.zeros([R, BLOCK // 2 if HALVES else BLOCK], tl.float32)
    ups = tl.zeros([R, BLOCK // 2 if HALVES else BLOCK], tl.float32)
    for k in tl.range(0, IN, BLOCK, num_stages=STAGES):
        inside = place < IN - k
        x = tl.load(x_part + k, mask=inside, other=0.0).to(tl.float32)[None, :]
        if CODE == "plain":
            present = kept[:, None] & inside[None, :]
            at = k + place[None, :]
            gates += tl.load(weight_part + gate_row[:, None] * IN + at, mask=present, other=0.0).to(tl.float32) * x
            ups += tl.load(weight_part + up_row[:, None] * IN + at, mask=present, other=0.0).to(tl.float32) * x
        else:
            gate_low, gate_high = read(
                weight_ptr, scale_ptr, offset_ptr, first + gate_row, kept, k, tl.float32, IN, BLOCK,
                CODE, LAYOUT, GROUP, SPAN, SAME, OFFSET, TOTAL, PTX,
            )  # fmt: skip
            up_low, up_high = read(
                weight_ptr, scale_ptr, offset_ptr, first + up_row, kept, k, tl.float32, IN, BLOCK,
                CODE, LAYOUT, GROUP, SPAN, SAME, OFFSET, TOTAL, PTX,
            )  # fmt: skip
            gates += gate_low * x
            ups += up_low * x
            if HALVES:
                far = tl.load(x_part + (k + LAYOUT // 2), mask=inside, other=0.0).to(tl.float32)[None, :]
                gates += gate_high * far
                ups += up_high * far
    gate = by_row(tl.sum(gates, 1), scale_ptr, first + gate_row, kept, CODE, GROUP)
    up = by_row(tl.sum(ups, 1), scale_ptr, first + up_row, kept, CODE, GROUP)
    if BIAS:
        gate += tl.load(bias_ptr + expert * (2 * OUT) + gate_row, mask=kept, other=0.0).to(tl.float32)
        up += tl.load(bias_ptr + expert * (2 * OUT) + up_row, mask=kept, other=0.0).to(tl.float32)
    inner = activated(gate, up, ACTIVATION, alpha, limit, kind)
    tl.store(out_ptr + pair * OUT + column, inner.to(kind), mask=kept)


@triton.jit
def down_pairs_kernel(
    inner_ptr,  # [P, I]
    weight_ptr,  # [X, E, I]
    scale_ptr,  # of codes, [groups, rows]
    offset_ptr,  # likewise
    bias_ptr,  # [X, E]
    shared_ptr,  # [T, E]
    out_ptr,  # [T, E]
    experts_ptr,  # [P]
    weights_ptr,  # [P]
    K: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    BIAS: tl.constexpr,
    SHARED: tl.constexpr,
    CODE: tl.constexpr,
    LAYOUT: tl.constexpr,
    GROUP: tl.constexpr,
    SPAN: tl.constexpr,
    SAME: tl.constexpr,
    OFFSET: tl.constexpr,
    TOTAL: tl.constexpr,  # rows of the codes
    PTX: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """A program some outputs of a token: the sum over its experts."""
    kind: tl.constexpr = out_ptr.dtype.element_ty
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * R + tl.arange(0, R)
    kept = column < OUT
    HALVES: tl.constexpr = LAYOUT > 0
    place = columns(tl.arange(0, BLOCK // 2 if HALVES else BLOCK), LAYOUT)
    total = tl.zeros([R], tl.float32)
    for k in range(K):
        pair = token * K + k
        expert = tl.load(experts_ptr + pair).to(tl.int64)
        row = expert * OUT + column
        rows = weight_ptr + expert * (OUT * IN) + column[:, None] * IN
        sums = tl.zeros([R, BLOCK // 2 if HALVES else BLOCK], tl.float32)
        for i in tl.range(0, IN, BLOCK, num_stages=STAGES):
            inside = place < IN - i
            x_part = inner_ptr + pair * IN + i + place
            x = tl.load(x_part, mask=inside, other=0.0).to(tl.float32)[None, :]
            if CODE == "plain":
                present = kept[:, None] & inside[None, :]
                sums += tl.load(rows + i + place[None, :], mask=present, other=0.0).to(tl.float32) * x
            else:
                low, high = read(
                    weight_ptr, scale_ptr, offset_ptr, row, kept, i, tl.float32, IN, BLOCK,
                    CODE, LAYOUT, GROUP, SPAN, SAME, OFFSET, TOTAL, PTX,
                )  # fmt: skip
                sums += low * x
                if HALVES:
                    sums += high * tl.load(x_part + LAYOUT // 2, mask=inside, other=0.0).to(tl.float32)[None, :]
        y = by_row(tl.sum(sums, 1), scale_ptr, row, kept, CODE, GROUP)
        if BIAS:
            y += tl.load(bias_ptr + expert * OUT + column, mask=kept, other=0.0).to(tl.float32)
        total += rounded(y, kind) * tl.load(weights_ptr + pair)
    if SHARED:
        total += tl.load(shared_ptr + token * OUT + column, mask=kept, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * OUT + column, total.to(kind), mask=kept)


@triton.jit
def tiles_kernel(
    x_ptr,  # [T, E], or with DOWN rows by expert [P, I]
    weight_ptr,  # [X, G, E], or [X, E, I]
    scale_ptr,  # of codes, [groups, rows]
    offset_ptr,  # likewise
    bias_ptr,
    out_ptr,  # rows by expert [P, I], or by pair [P, E]
    tiles_ptr,
    order_ptr,
    alpha,
    limit,
    K: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    DOWN: tl.constexpr,
    M: tl.constexpr,  # rows of a tile
    R: tl.constexpr,  # outputs of a program
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BIAS: tl.constexpr,
    CODE: tl.constexpr,
    LAYOUT: tl.constexpr,
    GROUP: tl.constexpr,
    SPAN: tl.constexpr,
    SAME: tl.constexpr,
    OFFSET: tl.constexpr,
    TOTAL: tl.constexpr,  # rows of the codes
    PTX: tl.constexpr,
    CHAINED: tl.constexpr,
):
    kind: tl.constexpr = out_ptr.dtype.element_ty
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    tile = tiles_ptr + tl.program_id(0) * 4
    expert = tl.load(tile).to(tl.int64)
    if expert >= 0:
        first = tl.load(tile + 1)
        row = tl.arange(0, M)
        present = row < tl.load(tile + 2)
        pair = tl.load(order_ptr + first + row, mask=present, other=0).to(tl.int64)
        source = first.to(tl.int64) + row if DOWN else pair // K
        target = pair if DOWN else first.to(tl.int64) + row
        column = tl.program_id(1) * R + tl.arange(0, R)
        kept = column < OUT
        ROWS: tl.constexpr = OUT if DOWN else 2 * OUT
        low = 2 * column if INTERLEAVED and not DOWN else column
        high = low + (1 if INTERLEAVED else OUT)
        HALVES: tl.constexpr = LAYOUT > 0
        place = columns(tl.arange(0, BLOCK // 2 if HALVES else BLOCK), LAYOUT)
        x_part = x_ptr + source[:, None] * IN + place[None, :]
        base = weight_ptr + expert * (ROWS * IN)
        low_part = base + low[:, None] * IN + place[None, :]
        high_part = base + high[:, None] * IN + place[None, :]
        low_row = expert * ROWS + low
        high_row = expert * ROWS + high
        sums = tl.zeros([R, M], tl.float32)
        highs = tl.zeros([R, M], tl.float32)
        for k in tl.range(0, IN, BLOCK, num_stages=STAGES):
            if CODE != "plain":
                inside = present[:, None] & (place < IN - k)[None, :]
                near = tl.trans(tl.load(x_part + k, mask=inside, other=0.0))
                far = near
                if HALVES:
                    far = tl.trans(tl.load(x_part + (k + LAYOUT // 2), mask=inside, other=0.0))
                weight, more = read(
                    weight_ptr, scale_ptr, offset_ptr, low_row, kept, k, near.dtype, IN, BLOCK,
                    CODE, LAYOUT, GROUP, SPAN, SAME, OFFSET, TOTAL, PTX,
                )  # fmt: skip
                sums = tl.dot(weight, near, sums, input_precision="ieee")
                if HALVES:
                    sums = tl.dot(more, far, sums, input_precision="ieee")
                if not DOWN:
                    weight, more = read(
                        weight_ptr, scale_ptr, offset_ptr, high_row, kept, k, near.dtype, IN, BLOCK,
                        CODE, LAYOUT, GROUP, SPAN, SAME, OFFSET, TOTAL, PTX,
                    )  # fmt: skip
                    highs = tl.dot(weight, near, highs, input_precision="ieee")
                    if HALVES:
                        highs = tl.dot(more, far, highs, input_precision="ieee")
            elif IN % BLOCK == 0 and OUT % R == 0:
                x = tl.load(x_part + k, mask=present[:, None], other=0.0)
                sums = tl.dot(tl.load(low_part + k), tl.trans(x), sums, input_precision="ieee")
                if not DOWN:
                    highs = tl.dot(tl.load(high_part + k), tl.trans(x), highs, input_precision="ieee")
            else:
                inside = (place < IN - k)[None, :]
                x = tl.load(x_part + k, mask=present[:, None] & inside, other=0.0)
                mask = kept[:, None] & inside
                sums = tl.dot(
                    tl.load(low_part + k, mask=mask, other=0.0), tl.trans(x), sums, input_precision="ieee"
                )  # fmt: skip
                if not DOWN:
                    weight = tl.load(high_part + k, mask=mask, other=0.0)
                    highs = tl.dot(weight, tl.trans(x), highs, input_precision="ieee")
        sums = by_row(sums, scale_ptr, low_row, kept, CODE, GROUP)
        if not DOWN:
            highs = by_row(highs, scale_ptr, high_row, kept, CODE, GROUP)
        if BIAS:
            sums += tl.load(bias_ptr + expert * ROWS + low, mask=kept, other=0.0).to(tl.float32)[:, None]
            if not DOWN:
                highs += tl.load(bias_ptr + expert * ROWS + high, mask=kept, other=0.0).to(tl.float32)[:, None]
        y = sums if DOWN else activated(sums, highs, ACTIVATION, alpha, limit, kind)
        out = out_ptr + target[:, None] * OUT + column[None, :]
        tl.store(out, tl.trans(y).to(kind), mask=present[:, None] & kept[None, :])


@triton.jit
def gather_kernel(
    x_ptr,  # [T, E]
    out_ptr,  # rows by expert [P, E]
    experts_ptr,  # [P]
    ranks_ptr,  # [P]
    starts_ptr,  # [X]
    K: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    pair = tl.program_id(0).to(tl.int64)
    row = tl.load(starts_ptr + tl.load(experts_ptr + pair)) + tl.load(ranks_ptr + pair)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < SIZE
    x = tl.load(x_ptr + pair // K * SIZE + column, mask=inside)
    tl.store(out_ptr + row.to(tl.int64) * SIZE + column, x, mask=inside)


@triton.jit
def gate_kernel(
    y_ptr,  # rows by expert [P, G]
    bias_ptr,  # [X, G]
    out_ptr,  # [P, I]
    ends_ptr,  # [X]
    alpha,
    limit,
    X: tl.constexpr,
    X_P2: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BIAS: tl.constexpr,
    CHAINED: tl.constexpr,
):
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < OUT
    low = 2 * column if INTERLEAVED else column
    high = low + (1 if INTERLEAVED else OUT)
    gate = tl.load(y_ptr + row * (2 * OUT) + low, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(y_ptr + row * (2 * OUT) + high, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        index = tl.arange(0, X_P2)
        ends = tl.load(ends_ptr + index, mask=index < X, other=2**31 - 1)
        bias = bias_ptr + tl.sum((ends <= row).to(tl.int32), 0).to(tl.int64) * (2 * OUT)
        gate += tl.load(bias + low, mask=inside, other=0.0).to(tl.float32)
        up += tl.load(bias + high, mask=inside, other=0.0).to(tl.float32)
    kind: tl.constexpr = out_ptr.dtype.element_ty
    tl.store(out_ptr + row * OUT + column, activated(gate, up, ACTIVATION, alpha, limit, kind).to(kind), mask=inside)


@triton.jit
def combine_kernel(
    y_ptr,  # [P, E], by pair, or with SORTED by expert
    bias_ptr,  # [X, E]
    shared_ptr,  # [T, E]
    out_ptr,  # [T, E]
    weights_ptr,  # [P]
    experts_ptr,
    ranks_ptr,
    starts_ptr,
    K: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    SORTED: tl.constexpr,
    BIAS: tl.constexpr,
    SHARED: tl.constexpr,
    CHAINED: tl.constexpr,
):
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < SIZE
    total = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(K):
        pair = token * K + k
        row = pair
        if SORTED:
            row = (tl.load(starts_ptr + tl.load(experts_ptr + pair)) + tl.load(ranks_ptr + pair)).to(tl.int64)
        y = tl.load(y_ptr + row * SIZE + column, mask=inside, other=0.0).to(tl.float32)
        if BIAS:
            bias = bias_ptr + tl.load(experts_ptr + pair).to(tl.int64) * SIZE
            y += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
        total += y * tl.load(weights_ptr + pair)
    if SHARED:
        total += tl.load(shared_ptr + token * SIZE + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * SIZE + column, total.to(out_ptr.dtype.element_ty), mask=inside)
