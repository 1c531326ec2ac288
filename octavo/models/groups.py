"""Which layers share a block table: groups of equally many layers that see equally far.

A page of the KV cache is a block of tokens for the layers of one group, so pages of all groups are of one size and come
from one pool, and a group whose layers have a window gives back what they cannot see any more
(`octavo.cache.manager`). Layers of the same index in their groups share the memory of that pool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MOST = 8  # groups, about: each has a table, and slots of its own in every step


@dataclass(frozen=True, slots=True)
class LayerGroups:
    windows: tuple[int | None, ...]  # one a group: tokens that its layers see, None for all
    size: int  # layers of a group; the last one of a window may have fewer
    places: tuple[tuple[int, int], ...]  # one a layer: its group, and its index there

    @classmethod
    def of(cls, windows: Sequence[int | None], max_len: int) -> LayerGroups:
        """`windows` has one a layer; one that spans every context, of at most `max_len` tokens, is none."""
        seen = [None if window is None or window >= max_len else window for window in windows]
        counts = Counter(seen)
        size = max(min(counts.values()), -(-len(seen) // MOST))
        kinds = sorted(counts, key=lambda window: (window is not None, window))
        first: dict[int | None, int] = {}
        found: list[int | None] = []
        for window in kinds:
            first[window] = len(found)
            found += [window] * -(-counts[window] // size)
        places, before = [], Counter[int | None]()
        for window in seen:
            group, index = divmod(before[window], size)
            places.append((first[window] + group, index))
            before[window] += 1
        return cls(tuple(found), size, tuple(places))

    @property
    def text(self) -> str:
        """For people."""
        kinds = Counter(self.windows)
        names = [f"{count} that see {'all' if window is None else window} tokens" for window, count in kinds.items()]
        return f"{self.size} layers, in groups: {', '.join(names)}" if len(self.windows) > 1 else "all layers"
