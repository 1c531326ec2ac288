"""How soon the GPU's memory is free after a kill -9 of the engine, the front or the supervisor of `octavo serve`.

    python -m bench.gpu_memory [--shape llama-3-8b] [--streams 32] [--seconds 75] [-- FLAGS OF octavo serve]

Weights are random. The device's memory is read every 10 ms from NVML, the library behind nvidia-smi, by this process,
which holds none of it. What is in use before the server starts is the floor: memory counts as free when no more than
2 GiB above it are in use, so that the context of an engine which is being started again is not taken for the dead
one's. Nothing else may use the GPU meanwhile.

One line of JSON a kill: seconds until the dead engine was gone, until the memory was free (and what was still in use
100 ms later), until the last client had its error, until /readyz said no, until another engine was started, and until
/readyz said yes. What had not happened when the time was over is null.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from bench.faults import Server
from octavo.bench.shapes import SHAPES, write_shape

TICK = 0.01
NEAR = 2 << 30  # bytes: a context of CUDA and what a new engine takes first
VICTIMS = ("engine", "front", "supervisor")


class _Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class Gpu:
    """The memory in use on a device, by whomever."""

    def __init__(self, index: int) -> None:
        self._nvml, self._device = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
        self._call("nvmlInit_v2")
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(self._device))

    def _call(self, name: str, *args: Any) -> None:
        status = getattr(self._nvml, name)(*args)
        if status:
            raise SystemExit(f"{name}: NVML says {status}")

    def used(self) -> int:
        memory = _Memory()
        self._call("nvmlDeviceGetMemoryInfo", self._device, ctypes.byref(memory))
        return int(memory.used)


class Watch(threading.Thread):
    """When each of some things was first seen to be so, in seconds since `since`; in the order that they are named."""

    def __init__(self, since: float, **sights: Callable[[], bool]) -> None:
        super().__init__(daemon=True)
        self.found: dict[str, float] = {}
        self._since, self._sights, self._over = since, sights, threading.Event()

    def run(self) -> None:
        while not self._over.wait(TICK):
            for name, seen in self._sights.items():
                if name not in self.found and seen():
                    self.found[name] = time.monotonic() - self._since

    def done(self) -> bool:
        return self.found.keys() >= self._sights.keys()

    def stop(self) -> dict[str, float]:
        self._over.set()
        self.join()
        return self.found


async def stream(http: httpx.AsyncClient, number: int, begun: asyncio.Semaphore) -> tuple[str, float]:
    """How it ended, and when."""
    body = {"prompt": [number] * 64, "max_tokens": 4096, "temperature": 0, "ignore_eos": True, "stream": True}
    told, end = 0, "complete"
    try:
        async with http.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                told += bool(line)
                if told == 3:
                    begun.release()
                if line.startswith('data: {"error"'):
                    end = str(json.loads(line[6:])["error"]["code"])
    except httpx.TransportError:
        end = "connection lost"
    if told < 3:
        begun.release()
    return end, time.monotonic()


async def readiness(http: httpx.AsyncClient, since: float, until: float, again: bool) -> dict[str, float]:
    found: dict[str, float] = {}
    while time.monotonic() < until:
        status = 0
        with contextlib.suppress(httpx.TransportError):
            status = (await http.get("/readyz", timeout=0.5)).status_code
        now = time.monotonic() - since
        if status != 200:
            found.setdefault("not_ready", now)
            if not again:
                break
        elif "not_ready" in found:
            found["ready_again"] = now
            break
        await asyncio.sleep(TICK)
    return found


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


async def kill(server: Server, victim: str, gpu: Gpu, floor: int, streams: int, until: float) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=120) as http:
        begun = asyncio.Semaphore(0)
        tasks = [asyncio.create_task(stream(http, i + 1, begun)) for i in range(streams)]
        for _ in tasks:
            await begun.acquire()
        engine, held = server.engine, gpu.used()
        pid = server.process.pid if victim == "supervisor" else getattr(server, victim)
        assert engine and held - floor > NEAR, f"the engine holds {(held - floor) >> 20} MiB only"
        again = victim != "supervisor"
        sights: dict[str, Callable[[], bool]] = {
            "engine_gone": lambda: gone(engine),
            "memory_free": lambda: gpu.used() - floor <= NEAR,
        }
        if again:
            sights["restart_begun"] = lambda: server.engine not in (0, engine)
        since = time.monotonic()
        watch = Watch(since, **sights)
        watch.start()
        os.kill(pid, signal.SIGKILL)
        ready = asyncio.create_task(readiness(http, since, until, again))
        while "memory_free" not in watch.found and time.monotonic() < until:
            await asyncio.sleep(TICK)
        await asyncio.sleep(0.1)
        left = gpu.used() - floor
        ends = await asyncio.gather(*tasks)
        found: dict[str, float] = await ready
        while not watch.done() and time.monotonic() < until:
            await asyncio.sleep(TICK)
        found |= watch.stop()
    names = ("engine_gone", "memory_free", "not_ready", "restart_begun", "ready_again")
    codes = [end for end, _ in ends]
    return {
        "killed": victim,
        "streams": streams,
        "held_gib": round((held - floor) / 2**30, 2),
        "clients_told": round(max(at for _, at in ends) - since, 3),
        **{name: round(found[name], 3) if name in found else None for name in names},
        "left_mib": left >> 20,
        "ends": {code: codes.count(code) for code in sorted(set(codes))},
    }


def ready(server: Server, until: float) -> bool:
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(server.url + "/readyz", timeout=1).status_code == 200:
                return True
        time.sleep(0.1)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=75.0, help="time for all of it, the start of the server too")
    parser.add_argument("--gpu", type=int, default=0, help="number of the device, as NVML counts")
    options, flags = parser.parse_known_args()
    begin, gpu = time.monotonic(), Gpu(options.gpu)
    floor, until = gpu.used(), time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder:
        model = str(write_shape(options.shape, Path(folder) / "model"))
        flags = ["--load-format", "dummy", "--max-model-len", "8192", *[flag for flag in flags if flag != "--"]]
        server = Server(model, ["--resume-requests", "off", "--log-level", "error", "--crash-dir", folder, *flags])
        print(json.dumps({"start": round(time.monotonic() - begin, 1), "floor_mib": floor >> 20}), flush=True)
        try:
            for victim in VICTIMS:
                if not ready(server, until):
                    sys.exit(f"the time is over before the {victim} could be killed: give more --seconds")
                print(json.dumps(asyncio.run(kill(server, victim, gpu, floor, options.streams, until))), flush=True)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
