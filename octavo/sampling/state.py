"""What the sampler keeps by row, and what the features share.

`RowTable` holds the numbers of every row twice: in numpy, where the host decides from them which code a step runs,
and on the device, where that code reads them. A join writes the numpy side; `flush` brings the rows that changed over
in one copy. On the CPU both sides are one memory.

A feature that needs more than numbers (a list of ids, counts over the vocabulary) keeps a pool of slots that grows by
doubling, and the table says which slot a row has. Slot 0 is neutral: it belongs to nobody and changes nothing, so that
a feature can be applied to rows with and without it alike.

Suffixes: R rows, G rows of a group, V vocabulary, W width of a slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.core.plan import FloatArray, IntArray, LongArray, RowJoin
from octavo.kernels.sampling_rows import Int, Mode, Real

__all__ = ["Edit", "Int", "Mode", "Real", "RowTable", "Selection", "Slots", "fill", "grown", "upload"]


def upload(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """The array on the device, without waiting for the device. On the CPU it shares the array's memory."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class RowTable:
    """The last row, `max_rows`, is a spare: greedy, without features, and nobody joins it."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self.device = device
        self.shared = device.type == "cpu"
        self.reals = np.zeros((max_rows + 1, len(Real)), np.float32)
        self.ints = np.zeros((max_rows + 1, len(Int)), np.int64)
        self.reals_R = upload(self.reals, device)
        self.ints_R = upload(self.ints, device)
        self._changed: set[int] = set()

    def reset(self, row: int) -> None:
        """The row has no owner: nothing of the last one is left."""
        self.reals[row] = 0
        self.ints[row] = 0
        self._changed.add(row)

    def flush(self) -> None:
        if self._changed and not self.shared:
            rows = np.fromiter(self._changed, np.int64)
            index = upload(rows, self.device)
            self.reals_R.index_copy_(0, index, upload(self.reals[rows], self.device))
            self.ints_R.index_copy_(0, index, upload(self.ints[rows], self.device))
        self._changed.clear()

    def select(self, rows: IntArray, rows_G: Tensor) -> Selection:
        return Selection(self.reals[rows], self.ints[rows], self.reals_R[rows_G], self.ints_R[rows_G])


@dataclass(slots=True)
class Selection:
    """The numbers of some rows, as they were when the batch was built."""

    host_reals: FloatArray
    host_ints: LongArray
    reals_GC: Tensor
    ints_GC: Tensor

    def real(self, column: Real) -> Tensor:
        return self.reals_GC[:, column, None]

    def int(self, column: Int) -> Tensor:
        return self.ints_GC[:, column]

    def uses(self, slot: Int) -> bool:
        return bool(self.host_ints[:, slot].any())


class Slots:
    """Who has which slot of a pool. A row keeps its slot until it joins again without need of one."""

    def __init__(self) -> None:
        self.count = 1  # with the neutral slot
        self._of_row: dict[int, int] = {}
        self._free: list[int] = []

    def assign(self, row: int, wanted: bool) -> int:
        if not wanted:
            if row in self._of_row:
                self._free.append(self._of_row.pop(row))
            return 0
        if row not in self._of_row:
            if not self._free:
                self._free.append(self.count)
                self.count += 1
            self._of_row[row] = self._free.pop()
        return self._of_row[row]


def grown(pool_RW: Tensor, rows: int, width: int) -> Tensor:
    """The pool itself if it has `rows` slots of `width`, or a copy of at least that size, filled up with zeros."""
    old_rows, old_width = pool_RW.shape
    if rows <= old_rows and width <= old_width:
        return pool_RW
    new = pool_RW.new_zeros(
        old_rows if rows <= old_rows else max(rows, 2 * old_rows),
        old_width if width <= old_width else max(width, 2 * old_width),
    )
    new[:old_rows, :old_width] = pool_RW
    return new


def fill(slot_W: Tensor, values: npt.NDArray[Any], pad: float = 0) -> None:
    """Write a slot as a whole, so that nothing of its last owner is left."""
    row = torch.full_like(slot_W, pad, device="cpu").numpy()
    row[: len(values)] = values
    slot_W.copy_(upload(row, slot_W.device))


class Edit:
    """A feature that changes the logits of its rows before a token is chosen.

    `join` puts the row's slot (0 without the feature) into the table; `apply` edits float32 logits in place, of any
    rows, those without the feature included; `observe` learns which tokens were chosen.
    """

    slot: Int

    def __init__(self, vocab_size: int, table: RowTable) -> None:
        self.vocab_size = vocab_size
        self.table = table
        self.device = table.device
        self.slots = Slots()

    def assign(self, row: int, wanted: bool) -> int:
        """The slot of a row that joins, 0 if it does not want the feature."""
        slot = self.slots.assign(row, wanted)
        self.table.ints[row, self.slot] = slot
        return slot

    def join(self, join: RowJoin) -> None:
        raise NotImplementedError

    def apply(self, logits_GV: Tensor, rows: Selection) -> None:
        raise NotImplementedError

    def observe(self, tokens_G: Tensor, positions_G: Tensor, rows: Selection) -> None:
        """Most features do not care."""
