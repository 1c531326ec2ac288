"""The engine as it stands between two steps, for who watches it: requests, and the KV cache as a map of cells.

A cell is one block, or `span` of them where there are more than `MAX_CELLS`. Of people's requests it holds ids and
lengths, and never a token of theirs.
"""

from __future__ import annotations

import msgspec

from octavo.core.outputs import Stats

MAX_CELLS = 4096
MAX_LISTED = 128  # running, and as many waiting requests; the others are only counted
NOBODY = -1


class Sight(msgspec.Struct):
    """One answer in the making; the one with index 0 of a request with several has the request's `uid`."""

    uid: int
    id: str  # what its client called it
    key: str  # the number of the API key; "" without keys
    prompt_tokens: int
    cached_tokens: int  # of the prompt, from the prefix cache; -1 before it runs
    computed_tokens: int  # whose KV is there, or made by the step under way
    known_tokens: int  # the prompt and what was generated
    max_tokens: int  # to generate at most
    preemptions: int
    blocks: int = 0
    cells: bytes = b""  # uint16: where its blocks are, in the order of its tokens


class CacheMap(msgspec.Struct):
    """An entry a cell; little-endian. What is neither held, cached nor withdrawn is free."""

    span: int  # blocks of a cell; the last one may have fewer
    cells: int
    held: bytes  # uint16: blocks that some request holds
    cached: bytes  # uint16: blocks that nobody holds, and that keep a prefix
    withdrawn: bytes  # uint16: blocks taken out of use
    holders: bytes  # uint8: most requests that hold one block
    fill: bytes  # uint8: tokens in its held blocks, 255 for all they could hold
    owner: bytes  # int16: place among `running` of one who holds it; -1 nobody that is listed


class Pace(msgspec.Struct):
    """Sums since the engine was started: a watcher divides the differences."""

    steps: int = 0
    seconds: float = 0.0  # that the steps took
    tokens: int = 0  # computed
    sampled: int = 0  # tokens that answers consist of
    prefix_queries: int = 0  # tokens of prompts that were looked up in the cache
    prefix_hits: int = 0  # of them: tokens that were there
    preemptions: int = 0

    def ran(self, tokens: int, seconds: float) -> None:
        self.steps += 1
        self.seconds += seconds
        self.tokens += tokens

    def told(self, stats: Stats) -> None:
        self.prefix_queries += stats.prefix_queries
        self.prefix_hits += stats.prefix_hits
        self.preemptions += stats.preemptions


class Picture(msgspec.Struct):
    num_running: int
    num_waiting: int
    free_blocks: int
    held_blocks: int
    cached_blocks: int
    withdrawn_blocks: int
    block_size: int
    pace: Pace
    running: list[Sight]
    waiting: list[Sight]
    map: CacheMap
