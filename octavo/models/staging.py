"""Copies weights from mapped files to where they live, to a GPU by several threads at once.

Reading a mapped page and copying it takes a CPU core about as long as ten of them take the bus to a GPU: so each
thread fills pinned buffers of its own, and its stream empties one while it fills the other. On the CPU a copy is made
at once, by torch's own threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

THREADS = 8
BUFFER_BYTES = 16 << 20  # two of them a thread


class _Buffers:
    """A thread's pinned memory and its stream."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.memory = [torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self.emptied = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self.turn = 0

    def copy(self, target: Tensor, source: Tensor) -> None:
        flat, given = target.view(-1), source.reshape(-1)
        count = BUFFER_BYTES // flat.element_size()
        with torch.cuda.stream(self.stream):
            for start in range(0, len(flat), count):
                part = given[start : start + count]
                self.turn ^= 1
                self.emptied[self.turn].synchronize()
                staged = self.memory[self.turn].view(flat.dtype)[: len(part)].copy_(part)
                flat[start : start + len(part)].copy_(staged, non_blocking=True)
                self.emptied[self.turn].record()


class Copier:
    """`with Copier(device) as copy: copy(target, source, done)`. All is copied when the block ends or `wait` returns.

    `done` is called with the bytes of each tensor, perhaps in another thread. What goes wrong is raised by `wait`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: ThreadPoolExecutor | None = None
        self.local = threading.local()
        self.under_way: list[Future[None]] = []
        if device.type == "cuda":
            self.pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "weights")

    def __call__(self, target: Tensor, source: Tensor, done: Callable[[int], None]) -> None:
        if self.pool is not None and target.is_contiguous():
            self.under_way.append(self.pool.submit(self._copy, target, source, done))
            return
        target.copy_(source)
        done(source.nbytes)

    def _copy(self, target: Tensor, source: Tensor, done: Callable[[int], None]) -> None:
        if not hasattr(self.local, "buffers"):
            self.local.buffers = _Buffers(self.device)
        self.local.buffers.copy(target, source)
        done(source.nbytes)

    def wait(self) -> None:
        for copy in self.under_way:
            copy.result()
        self.under_way.clear()
        if self.pool is not None:
            torch.cuda.synchronize()

    def __enter__(self) -> Copier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            if self.pool is not None:
                self.pool.shutdown(cancel_futures=True)
