"""What the sampling kernels share: random numbers, sortable numbers, and logits as a row's features leave them.

The random numbers are those of `octavo.sampling.random`, bit for bit as far as float32 arithmetic goes, and the order
in which features apply is that of `octavo.sampling.sampler`; the torch code there is the reference.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.sampling_rows import Int, Real

FREQUENCY = tl.constexpr(int(Real.FREQUENCY))
PRESENCE = tl.constexpr(int(Real.PRESENCE))
REPETITION = tl.constexpr(int(Real.REPETITION))
COUNTS = tl.constexpr(int(Int.COUNTS))
FORBIDDEN = tl.constexpr(int(Int.FORBIDDEN))
LIST = tl.constexpr(int(Int.LIST))
LIST_LENGTH = tl.constexpr(int(Int.LIST_LENGTH))
MIN_END = tl.constexpr(int(Int.MIN_END))

GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
FIRST = tl.constexpr(0xBF58476D1CE4E5B9)
SECOND = tl.constexpr(0x94D049BB133111EB)
ROUND = tl.constexpr(0xD1B54A32D192ED03)
INFINITY = tl.constexpr(float("inf"))
LARGEST = tl.constexpr(0x7FFFFFFF)  # of int32
LEAST = tl.constexpr(-0x80000000)


@triton.jit
def mixed(z):
    """The finaliser of SplitMix64, but for its last fold. uint64 to uint64."""
    z = (z ^ (z >> 30)) * FIRST
    return (z ^ (z >> 27)) * SECOND


@triton.jit
def stream_of(key, position):
    """The key of the stream for the token at this position."""
    z = mixed(position.to(tl.uint64, bitcast=True) * GOLDEN + key.to(tl.uint64, bitcast=True))
    return z ^ (z >> 31)


@triton.jit
def later(stream, turn):
    """The key of the stream for the turn-th draw of the same token."""
    z = mixed(turn.to(tl.uint64) * ROUND + stream)
    return z ^ (z >> 31)


@triton.jit
def exponential(stream, counter):
    """-log(1 - u) for a uniform u: by series where it is small, since a fast logarithm is inexact near one."""
    z = mixed(counter.to(tl.uint64) * GOLDEN + stream)
    u = tl.abs(z.to(tl.int64, bitcast=True).to(tl.float32)) * 2.0**-63
    u = tl.minimum(tl.maximum(u, 2.0**-64), 1 - 2.0**-24)
    s = tl.minimum(u, 0.5) / (2 - tl.minimum(u, 0.5))
    q = s * s
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q / 15))))))
    return tl.where(u < 0.5, 2 * s * series, -tl.log(1 - tl.maximum(u, 0.5)))


@triton.jit
def sortable(x, SHIFT: tl.constexpr):
    """int32 in the order of x, which is no NaN. `SHIFT` drops bits that are zero in all of x."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> SHIFT


@triton.jit
def row_of(logits_ptr, position, floor, reals_ptr, ints_ptr, EDITED: tl.constexpr):
    """What is read of a row's logits: a tuple for `logits_at`. All pointers are those of the row."""
    if EDITED:
        length = tl.load(ints_ptr + LIST_LENGTH).to(tl.int32)
        early = position < tl.load(ints_ptr + MIN_END)
        addresses = (tl.load(ints_ptr + LIST), tl.load(ints_ptr + FORBIDDEN), tl.load(ints_ptr + COUNTS))
        repetition = tl.load(reals_ptr + REPETITION)
        frequency = tl.load(reals_ptr + FREQUENCY)
        presence = tl.load(reals_ptr + PRESENCE)
        return logits_ptr, floor, length, early, addresses, repetition, frequency, presence
    else:
        return (logits_ptr,)


@triton.jit
def quotient(x, divisor):
    """x / divisor, rounded correctly: two steps correct the product with the divisor's reciprocal."""
    reciprocal = tl.div_rn(1.0, divisor)
    estimate = x * reciprocal
    corrected = tl.fma(tl.fma(-estimate, divisor, x), reciprocal, estimate)
    return tl.where(x < INFINITY, corrected, x)


@triton.jit
def penalised(x, token, inside, address, repetition, frequency, presence):
    counts_ptr = tl.multiple_of(address.to(tl.pointer_type(tl.uint16)), 16)
    count = tl.load(counts_ptr + token, mask=inside, other=0).to(tl.int32)
    times = (count >> 1).to(tl.float32)
    repeated = tl.where(x > 0, quotient(x, repetition), x * repetition)
    return tl.where(count > 0, repeated - (frequency * times + tl.where(count > 1, presence, 0.0)), x)


@triton.jit
def listed(x, token, first, last, address, length, early, floor):
    """Stop ids and biases of the list's ids from `first` to `last`, between which all the tokens are."""
    ids_ptr = address.to(tl.pointer_type(tl.int32))
    biases_ptr = address.to(tl.pointer_type(tl.float32)) + 2 * length
    begin = tl.full([], 0, tl.int32)
    end = tl.full([], 0, tl.int32)
    for start in range(0, length, 256):
        at = start + tl.arange(0, 256)
        listed_id = tl.load(ids_ptr + at, mask=at < length, other=LARGEST)
        begin += tl.sum((listed_id < first).to(tl.int32), 0)
        end += tl.sum((listed_id < last).to(tl.int32), 0)
    for i in range(begin, end):
        here = token == tl.load(ids_ptr + i)
        stops = early & (tl.load(ids_ptr + length + i) != 0)
        hidden = tl.where(stops & (x < INFINITY), tl.minimum(x, floor), x)
        x = tl.where(here, hidden + tl.load(biases_ptr + i), x)
    return x


@triton.jit
def logits_at(row, token, inside, first, last, EDITED: tl.constexpr):
    """A row's logits of some tokens in float32, as they are chosen from; -inf outside, and +inf for NaN.

    `token` is a tensor of ids from `first` up to `last`; `row` is of `row_of`.
    """
    x = tl.load(row[0] + token, mask=inside, other=-INFINITY).to(tl.float32)
    x = tl.where(x != x, INFINITY, x)
    if EDITED:
        _logits_ptr, floor, length, early, addresses, repetition, frequency, presence = row
        entries, forbidden, counts = addresses
        if length > 0:
            x = listed(x, token, first, last, entries, length, early, floor)
        if forbidden != 0:
            word = tl.load(forbidden.to(tl.pointer_type(tl.int32)) + (token >> 5), mask=inside, other=0)
            x = tl.where((((word >> (token & 31)) & 1) != 0) & (x < INFINITY), -INFINITY, x)
        if counts != 0:
            x = penalised(x, token, inside, counts, repetition, frequency, presence)
    return x
