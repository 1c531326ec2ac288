"""Random numbers that are a pure function of (seed of the row, position of the token, counter).

There is no generator state: the same request with the same seed draws the same numbers whatever else is in the batch,
however its prompt was chunked and however often it was preempted, on any row. The function is the finaliser of
SplitMix64: a stream's key is mixed from seed and position, and the n-th number of the stream is the mix of key + n
times the golden ratio. Every step is an int64 operation that wraps, so that CPU and GPU agree bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WRAP = 1 << 64


def _signed(constant: int) -> int:
    return constant - _WRAP if constant >> 63 else constant


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)
_ROUND = _signed(0xD1B54A32D192ED03)  # odd, unlike the golden ratio: keys of rounds are no counters of a stream


def key_of(seed: int) -> int:
    """What is kept of a seed: seeds that differ by little give keys that differ in half their bits. On the host."""
    z = (seed + _GOLDEN) % _WRAP  # the mix of 0 is 0, which the seed 0 must not be left with
    z = (z ^ z >> 30) * (_FIRST % _WRAP) % _WRAP
    z = (z ^ z >> 27) * (_SECOND % _WRAP) % _WRAP
    return _signed(z ^ z >> 31)


def _fold(z: Tensor, shift: int) -> Tensor:
    """z ^= z >> shift, the shift being a logical one, which int64 lacks."""
    return z.bitwise_xor_((z >> shift).bitwise_and_((1 << (64 - shift)) - 1))


def _mix(z: Tensor) -> Tensor:
    """In place: what `key_of` does."""
    z = _fold(z, 30).mul_(_FIRST)
    z = _fold(z, 27).mul_(_SECOND)
    return _fold(z, 31)


def streams(keys_G: Tensor, positions_G: Tensor) -> Tensor:
    """The streams, by their own keys, from which the tokens at these positions are drawn."""
    return _mix(positions_G * _GOLDEN + keys_G)


def later(keys_G: Tensor, turn: int) -> Tensor:
    """The keys of independent streams for the turn-th draw of the same token, where one was rejected."""
    return _mix(keys_G + _signed(turn * _ROUND % _WRAP))


def exponentials(keys_G: Tensor, counters: Tensor) -> Tensor:
    """Numbers of the exponential distribution, [G, K], for counters [K] or [G, K] of each stream.

    float32 near 0 is fine enough for a race over a vocabulary: 64 random bits become a number that keeps 24
    significant bits however small it is, and the smallest exponential, which wins, is as good as that number.
    """
    z = keys_G[:, None] + counters * _GOLDEN
    z = _fold(z, 30).mul_(_FIRST)
    z = _fold(z, 27).mul_(_SECOND)  # the last fold of the mix only improves low bits, and those are rounded away
    uniform = z.float().abs_().mul_(2.0**-63).clamp_(2.0**-64, 1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_()


def race(weights_GK: Tensor, exponentials_GK: Tensor) -> Tensor:
    """An index with probability proportional to its weight: arrivals at rate w, and the first one wins.

    This is Gumbel-max without the logarithms. Unlike inverting a cumulative sum with one uniform, it moves the choice
    with probability about eps when the weights move by a relative eps, not by eps times the number of tokens: logits
    of another batch size, which differ in the last bits, give the same tokens.
    """
    return torch.argmax(weights_GK / exponentials_GK, dim=-1)
