"""One answer in the making, while it is not in a steady decode: waiting, joining, preempted, leaving."""

from __future__ import annotations

from octavo.core.plan import IntArray
from octavo.core.request import EngineRequest

_GOLDEN = 0x9E3779B97F4A7C15


class Sequence:
    __slots__ = (
        "uid",
        "request",
        "parent",
        "key",
        "seed",
        "prompt_len",
        "tokens",
        "hashes",
        "root",
        "row",
        "num_cached",
        "passed",
        "started",
        "preemptions",
        "charged",
        "told",
    )

    def __init__(
        self, request: EngineRequest, index: int, arrival: int, seed: int, parent: Sequence | None, start: int = 0
    ) -> None:
        self.uid = request.uid + index
        self.request = request
        self.parent = parent  # the sequence whose prompt blocks this one forks
        # The order of service; lower is first. `start` is its turn, where tenants take turns.
        self.key = (request.priority, start, arrival, index)
        # Each of the n answers draws from its own stream; the first one's is that of a request with n = 1.
        self.seed = (seed + index * _GOLDEN + (1 << 63)) % (1 << 64) - (1 << 63)
        self.tokens: IntArray = request.prompt_ids() if parent is None else parent.tokens
        self.prompt_len = len(self.tokens)
        self.hashes: list[bytes] = []  # of the full blocks of `tokens`, made when the sequence is first looked at
        self.root = b""
        self.row = -1
        self.num_cached = -1  # prompt tokens that came from the cache; -1 before the first admission
        self.passed = 0  # times a later sequence was admitted because this one did not fit
        self.started = False  # the client knows that its prompt has been computed
        self.preemptions = 0
        self.charged = 0  # what its tenant's account was charged for it
        self.told = 0  # tokens of the prompt after which the client has the logprobs, where it asks for them

    @property
    def limit(self) -> int:
        """Tokens at which the sequence is full."""
        return self.prompt_len + self.request.max_tokens
