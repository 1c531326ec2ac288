"""Python's garbage collector in processes that must not pause.

Its default is to look at young objects after every 700 new ones and, now and then, at all: with torch loaded or a
thousand streams open that is tens of milliseconds in the middle of a step. What exists once a process is ready stays
until its end, so it is never looked at again (`gc.freeze`); and our objects form few cycles, so it looks seldom.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

YOUNG, MIDDLE, OLD = 50_000, 20, 20


def settle() -> None:
    """Once, when the process is ready for its work."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)


def trim() -> None:
    """Gives back what has been freed: the C library keeps it otherwise, after large work for good."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
