"""The memory ledger: what weights, workspace and KV cache take of a device. Bytes everywhere."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.core.errors import ConfigError

GIB = 1 << 30


@dataclass(slots=True)
class Ledger:
    device: str
    total: int  # of the device
    free: int  # before the engine took any
    entries: dict[str, int] = field(default_factory=dict)

    def table(self) -> list[tuple[str, str]]:
        """Name and size of each entry, for people."""
        rows = [(name, f"{size / GIB:.2f} GiB") for name, size in self.entries.items()]
        return [*rows, ("free at start", f"{self.free / GIB:.2f} of {self.total / GIB:.2f} GiB on {self.device}")]


def edits_of_rows(rows: int, vocab_size: int) -> int:
    """Bytes that the sampler keeps of rows if all have penalties and lists of allowed tokens (sampling/fused.py).

    It takes them when they are asked for: but a model's own defaults may have a penalty for everybody.
    """
    return rows * (2 * vocab_size + vocab_size // 8)


def blocks_that_fit(room: int, bytes_per_block: int, most: int) -> int:
    """KV blocks for `room` bytes, but not more than `most`, which is all that the rows could ever fill."""
    blocks = min(room // bytes_per_block, most)
    if blocks < 1:
        raise ConfigError(
            f"there is no room for a KV cache: {max(room, 0) / GIB:.2f} GiB are left and a block takes "
            f"{bytes_per_block / GIB:.4f}: raise --gpu-memory-utilization, or use a smaller model"
        )
    return blocks
