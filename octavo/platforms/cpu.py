"""Queries about the CPU and its memory, and the defaults that follow from them. Linux; elsewhere little is known."""

from __future__ import annotations

import functools
import os
from pathlib import Path

# Flags of /proc/cpuinfo that mean matrix products of the type run on hardware: x86, then Arm.
_FLAGS = {"bfloat16": {"avx512_bf16", "amx_bf16", "bf16"}, "float16": {"avx512_fp16", "amx_fp16", "fphp"}}


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's entries."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def name() -> str:
    return _cpuinfo().get("model name", "CPU")


def flags() -> frozenset[str]:
    info = _cpuinfo()
    return frozenset((info.get("flags") or info.get("features") or "").split())


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> tuple[int, int]:
    """(bytes that can still be taken, bytes in all), within the limit of a container if there is one."""
    free, total = _meminfo("MemAvailable"), _meminfo("MemTotal")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return free, total
    return max(0, min(free, limit - used)), min(total, limit)


def _meminfo(key: str) -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def default_dtype(checkpoint: str) -> tuple[str, str | None]:
    """The type to compute in for a checkpoint's, and the reason if it is another one."""
    if checkpoint == "float32" or _FLAGS[checkpoint] & flags():
        return checkpoint, None
    return "float32", f"{name()} has no {checkpoint} matrix products ({' or '.join(sorted(_FLAGS[checkpoint]))})"
