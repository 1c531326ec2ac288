"""How long faults of processes are felt: kills each process of `octavo serve` under streams, and prints the seconds.

    python bench/faults.py [--model M] [--streams 200] [--rounds 3] [-- FLAGS OF octavo serve]

For each row: the longest wait of a client for its error (or, of those that go on, its longest silence), until /readyz
says 503, until another process was started, and until /readyz says 200 again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

TICK = 0.005


class Server:
    def __init__(self, model: str | None, flags: list[str]) -> None:
        command = [sys.executable, "-m", "octavo.cli.main", "serve", *([model] if model else []), "--port", "0", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = ""
        while "curl" not in said:
            line = self.process.stderr.readline()
            assert line, said
            said += line
        self.url = re.search(r"http://127\.0\.0\.1:\d+", said)[0]  # type: ignore[index]
        os.set_blocking(self.process.stderr.fileno(), False)

    @property
    def front(self) -> int:
        return (children(self.process.pid) or [0])[0]

    @property
    def engine(self) -> int:
        found = [pid for pid in children(self.front) if b"octavo.engine.process" in command_of(pid)]
        return found[0] if found else 0

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


def children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, of = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(of) == parent and state not in "ZX":
            found.append(int(entry.name))
    return sorted(found)


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def stream(http: httpx.AsyncClient, number: int, times: list[float]) -> str:
    """Notes when something came; the code of the error that it ends with, if one does."""
    body = {"prompt": f"{number}:", "max_tokens": 400, "temperature": 0, "ignore_eos": True, "stream": True}
    try:
        async with http.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                times.append(time.monotonic())
                if line.startswith('data: {"error"'):
                    return str(json.loads(line[6:])["error"]["code"])
    except httpx.TransportError:
        times.append(time.monotonic())
        return "connection lost"
    return "complete"


async def probe(http: httpx.AsyncClient, server: Server, before: int, since: float) -> dict[str, float]:
    found: dict[str, float] = {}
    while "ready again" not in found and time.monotonic() - since < 120:
        try:
            status = (await http.get("/readyz", timeout=0.5)).status_code
        except httpx.TransportError:
            status = 0
        now = time.monotonic() - since
        if status != 200:
            found.setdefault("not ready", now)
        elif "not ready" in found:
            found["ready again"] = now
        engine = server.engine
        if engine and engine != before:
            found.setdefault("restart begun", now)
        await asyncio.sleep(TICK)
    return found


async def round_of(server: Server, streams: int, victim: str) -> dict[str, object]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=120) as http:
        times: list[list[float]] = [[] for _ in range(streams)]
        tasks = [asyncio.create_task(stream(http, i, each)) for i, each in enumerate(times)]
        while not all(len(each) > 2 or task.done() for each, task in zip(times, tasks, strict=True)):
            await asyncio.sleep(TICK)
        engine, since = server.engine, time.monotonic()
        os.kill(getattr(server, victim), signal.SIGKILL)
        found: dict[str, object] = dict(await probe(http, server, engine, since))
        ends = await asyncio.gather(*tasks)
        waits = [
            max(b - a for a, b in zip(each, each[1:], strict=False)) if end == "complete" else each[-1] - since
            for each, end in zip(times, ends, strict=True)
        ]
    found["longest wait of a client"] = max(waits)
    found["ends"] = {end: ends.count(end) for end in sorted(set(ends))}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options, flags = parser.parse_known_args()
    flags = [flag for flag in flags if flag != "--"]
    for victim, resume in (("engine", "off"), ("engine", "greedy"), ("front", "greedy")):
        for _ in range(options.rounds):
            server = Server(options.model, ["--resume-requests", resume, "--log-level", "error", *flags])
            try:
                row = asyncio.run(round_of(server, options.streams, victim))
            finally:
                server.stop()
            shown = {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}
            print(json.dumps({"killed": victim, "resume": resume, **shown}), flush=True)


if __name__ == "__main__":
    main()
