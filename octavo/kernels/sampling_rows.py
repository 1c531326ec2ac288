"""Columns of the sampler's tables: what the host writes at a join and both the kernels and the torch code read.

An address is that of the row's own memory on the device, 0 where the row has none: such memory belongs to a row as
long as its owner does, and never moves, so a captured step finds it.
"""

from __future__ import annotations

from enum import IntEnum


class Real(IntEnum):
    """Columns of numbers."""

    TEMPERATURE = 0
    TOP_P = 1
    MIN_P = 2
    REPETITION = 3
    FREQUENCY = 4
    PRESENCE = 5


class Int(IntEnum):
    """Columns of integers."""

    KEY = 0  # of the row's random numbers
    TOP_K = 1  # 0: off
    LOGPROBS = 2  # -1: off
    MIN_END = 3  # stop ids are masked below this position
    # Of the torch code: slots of its pools, 0 for none.
    STOPS_SLOT = 4
    BIAS_SLOT = 5
    ALLOWED_SLOT = 6
    SEEN_SLOT = 7
    SEEN_SHIFT = 8  # position of a token + shift = where it stands in the list of what the row has seen
    # Of the kernels.
    MODE = 9  # a `Mode`
    CANDIDATES = 10  # groups of tokens that are searched for the top_k
    COUNTS = 11  # address of uint16 [V]: bit 0: in the prompt; the bits above it: times generated
    FORBIDDEN = 12  # address of int32 [V / 32]: a bit for each token that is not allowed
    LIST = 13  # address of int32 [3, length]: ids in ascending order, whether each is a stop id, biases (float32)
    LIST_LENGTH = 14


class Mode(IntEnum):
    """How a row's token is chosen."""

    GREEDY = 0
    ALL = 1  # any token may be drawn, or any above min_p
    NUCLEUS = 2  # top_p without top_k
    TOP_K = 3  # top_k, and top_p among those
