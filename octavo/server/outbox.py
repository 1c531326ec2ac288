"""What a step says to its streams, sent in bursts.

To send takes the system longest where it has to wake the reader. Readers of many streams (proxies, or clients that open
many) stay awake for chunks that follow each other closely, and fall asleep between chunks that are sent as they are
made. So some chunks are made, then sent; the last ones when the step is over, before anything else happens.
"""

from __future__ import annotations

from octavo.core.outputs import Stats
from octavo.server.http import ClientGone, Exchange

BURST = 64  # chunks; the first of them waits half a millisecond for the last


class Outbox:
    def __init__(self) -> None:
        self._chunks: list[tuple[Exchange, bytes]] = []

    def put(self, exchange: Exchange, chunk: bytes) -> None:
        """A chunk for an exchange that is `ready`, from a sink of the engine's."""
        self._chunks.append((exchange, chunk))
        if len(self._chunks) >= BURST:
            self.flush()

    def flush(self, _: Stats | None = None) -> None:
        """As a listener of the engine's, it is called after every step."""
        chunks, self._chunks = self._chunks, []
        for exchange, chunk in chunks:
            try:
                exchange.push(chunk)
            except Exception:  # of this connection: nobody else has a part in it
                exchange.interrupt(ClientGone())
