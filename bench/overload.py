"""Ten times the load that can be served: what is still served, and how fast the rest is told so.

    python -m bench.overload --slots 16 --seconds 20

An engine that only keeps time answers `slots` requests at once and refuses more. First as many clients as slots ask
one request after the other: what they complete in a second is the server's maximum. Then requests arrive at ten times
that rate, on connections of their own, whether or not others are done. Reported: completed requests against the
maximum, the time until a request was refused, and whether each refusal said when to come back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import time
from typing import Any

import numpy as np

from octavo.core import log
from octavo.core.config import EngineConfig
from octavo.server.config import ServerConfig
from tests.server.conftest import Running
from tests.server.fake_engine import FakeLLM

BODY = json.dumps({"prompt": "count", "max_tokens": 32, "ignore_eos": True}).encode()
REQUEST = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
)


def server(pipe: Any, slots: int, step: float) -> None:
    log.logger.setLevel(logging.CRITICAL)
    running = Running(FakeLLM(delay=step, most=slots), ServerConfig(port=0, log_level="error"), EngineConfig())
    running.start()
    pipe.send(running.port)
    pipe.recv()


async def one(port: int) -> tuple[float, bytes]:
    begin = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST)
    answer = await reader.read()
    writer.close()
    return time.monotonic() - begin, answer


async def maximum(port: int, slots: int, seconds: float) -> float:
    """Completed requests a second when nobody is refused."""
    end, done = time.monotonic() + seconds, 0

    async def client() -> None:
        nonlocal done
        while time.monotonic() < end:
            _, answer = await one(port)
            assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
            done += 1

    await asyncio.gather(*(client() for _ in range(slots)))
    return done / seconds


async def overload(port: int, rate: float, seconds: float) -> list[tuple[float, bytes]]:
    rng = np.random.default_rng(0)
    begin, due, tasks = time.monotonic(), 0.0, []
    while due < seconds:
        await asyncio.sleep(begin + due - time.monotonic())
        tasks.append(asyncio.create_task(one(port)))
        due += float(rng.exponential(1 / rate))
    return await asyncio.gather(*tasks)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.overload", description=__doc__.partition("\n")[0])
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--step", type=float, default=20.0, help="milliseconds (default: 20)")
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    serving = context.Process(target=server, args=(theirs, args.slots, args.step / 1000), daemon=True)
    serving.start()
    try:
        port = ours.recv()
        most = asyncio.run(maximum(port, args.slots, args.seconds))
        answers = asyncio.run(overload(port, most * args.factor, args.seconds))
    finally:
        serving.kill()
    done = sum(answer.startswith(b"HTTP/1.1 200") for _, answer in answers)
    refused = [(seconds, answer) for seconds, answer in answers if answer.startswith(b"HTTP/1.1 503")]
    times = np.array([seconds for seconds, _ in refused]) * 1000
    print(f"maximum: {most:.1f} requests/s; offered: {len(answers) / args.seconds:.1f}")
    print(f"completed: {done / args.seconds:.1f} requests/s, {done / args.seconds / most:.1%} of the maximum")
    if len(times):
        p50, p99 = np.percentile(times, [50, 99])
        told = sum(b"\r\nretry-after: " in answer for _, answer in refused)
        print(f"refused: {len(refused)}, p50 {p50:.1f} ms, p99 {p99:.1f} ms; {told} with Retry-After")
    print(f"neither: {len(answers) - done - len(refused)}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
