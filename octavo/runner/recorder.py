"""Records work on a GPU as CUDA graphs that share one pool of memory, since only one of them runs at a time."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import torch

log = logging.getLogger(__name__)


class Recorder:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = None  # torch gives no name to its type
        self._stream: torch.cuda.Stream | None = None  # one for all: what one has used, another does not get

    def try_to_record(self, name: str, work: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """As `record`; None, and a line of log, where it fails: the same step can be done without a graph."""
        try:
            return self.record(work)
        except Exception:
            log.exception("%s could not be recorded: such steps go on without", name)
            return None

    def record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Does the work once, which compiles what is not yet compiled, then records it: what it reads must be valid.

        The recorded work must be nothing but launches on memory that stays. A large one recorded first leaves room in
        the pool for all smaller ones.
        """
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        graph, stream = torch.cuda.CUDAGraph(), self._stream
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            work()
            stream.synchronize()
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # it says only that there was an error
                    graph.capture_end()
                raise
            graph.capture_end()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        return graph
