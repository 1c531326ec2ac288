"""What the server adds to a token: many streams at once over HTTP, from an engine that only keeps time.

    python -m bench.streams --streams 1000 --interval 50 --seconds 20

An engine in the server's process gives streams a token at each tick; the token says which tick. With one group, every
stream has a token at every tick, as one engine's steps make them; with more groups they take turns, so that the server
has the same work in smaller portions. Clients in a process of their own, on sockets that they read without any HTTP
library, note when it arrives. Reported is the time from when the server has a step's outputs to the arrival of each of
its tokens (detokenizing, JSON, HTTP, both sockets, and the client's own reading), how many tokens the server had to
send together because it was late, the server's processor time a token, that of the engine included, and for comparison
what the system takes to send as many chunks to as many sockets with nothing else to do.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import select
import selectors
import socket
import sys
import time
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import numpy as np

from octavo.core import collector
from octavo.core.config import EngineConfig
from octavo.core.outputs import StepOutputs
from octavo.server.config import ServerConfig
from tests.server.fake_engine import FakeLLM

MARKS = [chr(code) for code in range(0x30, 0x7B) if chr(code) not in '"\\']  # a token is one of them
TICKS = 1 << 16
MARKER = b'"delta":{"content":"'  # its text follows
CHUNK_BYTES = 260  # of a streamed token with its JSON and its HTTP


class Metronome(FakeLLM):
    """At tick i a group of the streams gets the token MARKS[i % len(MARKS)]; each group every `interval` seconds."""

    def __init__(self, interval: float, groups: int, times: Any, ticks: Any) -> None:
        super().__init__(max_model_len=1 << 20)
        self.interval, self.groups, self.times, self.ticks = interval / groups, groups, times, ticks

    async def run(self) -> None:
        due = time.monotonic()
        while self.ready and any(not state.finished for state, _ in self.live.values()):
            due = max(due + self.interval, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            tick = self.ticks.value
            token = self.tokenizer.encode(MARKS[tick % len(MARKS)])[0]
            uids = np.array([uid for uid in self.live if uid % self.groups == tick % self.groups], np.int64)
            outputs = StepOutputs(uids.tobytes(), np.full(len(uids), token, np.int32).tobytes())
            self.times[tick % TICKS] = time.monotonic()
            self.ticks.value = tick + 1
            self.take(outputs)


def server(port: Any, interval: float, groups: int, times: Any, ticks: Any, seconds: Any) -> None:
    import uvloop

    from octavo.server.serve import Serving
    from octavo.server.sockets import bind

    async def start(engine: EngineConfig, server: ServerConfig) -> Any:
        collector.settle()
        return Metronome(interval, groups, times, ticks)

    async def clock() -> None:
        while True:
            seconds.value = time.process_time()
            await asyncio.sleep(0.02)

    async def run() -> None:
        sock = bind("127.0.0.1", 0)
        port.value = sock.getsockname()[1]
        task = asyncio.create_task(clock())
        await Serving(EngineConfig(), ServerConfig(), start).run(sock)
        task.cancel()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def connect(port: int, count: int) -> list[socket.socket]:
    """As many streams, each with its request on the way."""
    body = json.dumps(
        {"model": "fake", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100_000, "stream": True}
    )
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json"
    head += f"\r\ncontent-length: {len(body)}"
    socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    for sock in socks:
        sock.sendall(f"{head}\r\n\r\n{body}".encode())
        sock.setblocking(False)
    return socks


def read(port: int, count: int, seconds: float, spin: bool, times: Any, ticks: Any, used: Any) -> dict[str, Any]:
    """Opens the streams, reads them for so long once all have begun, and leaves. What was read is looked at then."""
    socks = {sock.fileno(): sock for sock in connect(port, count)}
    poll = select.epoll()
    for number in socks:
        poll.register(number, select.EPOLLIN)
    begun: set[int] = set()
    chunks: list[bytes] = []
    moments: list[float] = []  # when each chunk came
    latest: list[int] = []  # the number of ticks that there had been
    end = float("inf")
    gc.disable()  # a pause would be the server's
    while (now := time.monotonic()) < end:
        for number, _ in poll.poll(0 if spin else 1.0):
            data = socks[number].recv(1 << 16)
            now = time.monotonic()
            if not data:
                poll.unregister(number)
            if end < float("inf"):
                chunks.append(data)
                moments.append(now)
                latest.append(ticks.value)
            elif MARKER in data:
                begun.add(number)
        if len(begun) == count and end == float("inf"):
            end = time.monotonic() + seconds
            before, first = used.value, ticks.value
    spent = (used.value - before) / (ticks.value - first)  # by the server in a tick
    return {**judge(chunks, moments, latest, times), "spent": spent}


def judge(chunks: list[bytes], moments: list[float], latest: list[int], times: Any) -> dict[str, Any]:
    """How late each token was, and how many came together."""
    place = {mark: i for i, mark in enumerate(MARKS)}
    late: list[float] = []
    together: list[int] = []
    errors = 0
    for data, now, last in zip(chunks, moments, latest, strict=True):
        errors += not data or b'"error"' in data
        for part in data.split(MARKER)[1:]:
            text = part.partition(b'"')[0].decode()
            together.append(len(text))
            for mark in text:
                tick = last - 1 - (last - 1 - place[mark]) % len(MARKS)
                late.append(now - times[tick % TICKS])
    return {"late": late, "together": together, "errors": errors}


def drain(port: int, count: int, ready: Any) -> None:
    """Reads whatever comes, until the other side closes."""
    selector = selectors.DefaultSelector()
    for _ in range(count):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
    ready.set()
    while True:
        for key, _ in selector.select():
            if not key.fileobj.recv(1 << 16):  # type: ignore[union-attr]
                return


def floor(context: Any, count: int, size: int, rounds: int = 60) -> list[float]:
    """Seconds that sending a chunk to each of so many sockets takes with nothing else to do, round by round."""
    listener, ready = socket.create_server(("127.0.0.1", 0), backlog=count), context.Event()
    reading = context.Process(target=drain, args=(listener.getsockname()[1], count, ready))
    reading.start()
    socks = [listener.accept()[0] for _ in range(count)]
    ready.wait()
    chunk, found = b"x" * size, []
    for _ in range(rounds):
        begin = time.perf_counter()
        for sock in socks:
            sock.send(chunk)
        found.append(time.perf_counter() - begin)
        time.sleep(0.05)
    for sock in (*socks, listener):
        sock.close()
    reading.join()
    return found


def client(pipe: Any, *args: Any) -> None:
    pipe.send(read(*args))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.streams", description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=50.0, help="milliseconds between ticks (default: 50)")
    parser.add_argument("--groups", type=int, default=1, help="of streams that get their tokens in turn (default: 1)")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--spin", action="store_true", help="the client never sleeps: nobody must wake it")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    times, ticks = context.Array("d", TICKS, lock=False), context.Value("q", 0, lock=False)
    port: Synchronized[int] = context.Value("i", 0)
    used: Synchronized[float] = context.Value("d", 0.0)
    serving = context.Process(target=server, args=(port, args.interval / 1000, args.groups, times, ticks, used))
    serving.start()
    try:
        while port.value == 0:
            time.sleep(0.05)
        time.sleep(1.0)
        ours, theirs = context.Pipe()
        asked = (args.streams, args.seconds, args.spin)
        reading = context.Process(target=client, args=(theirs, port.value, *asked, times, ticks, used))
        reading.start()
        found = ours.recv()
        reading.join()
    finally:
        serving.kill()
        serving.join()
    bare_ms = np.array(floor(context, args.streams, CHUNK_BYTES)) * 1000
    late_ms = np.array(found["late"]) * 1000
    p50, p99, most = np.percentile(late_ms, [50, 99, 100])
    record = {
        "streams": args.streams,
        "interval_ms": args.interval,
        "groups": args.groups,
        "client": "spins" if args.spin else "sleeps",
        "tokens": len(late_ms),
        "errors": found["errors"],
        "added_ms": {"p50": round(p50, 2), "p99": round(p99, 2), "max": round(most, 2)},
        "tokens_together": round(float(np.mean(found["together"])), 2),
        "server_us_per_token": round(found["spent"] / args.streams * args.groups * 1e6, 1),
        "bare_send_us": round(float(np.median(bare_ms)) * 1000 / args.streams, 1),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
    }
    if args.json:
        print(json.dumps(record))
        return
    print(f"{args.streams} streams, a token each every {args.interval:g} ms, in {args.groups} groups")
    print(f"errors: {found['errors']}")
    print(f"added to a token: p50 {p50:.1f} ms, p99 {p99:.1f} ms, at most {most:.1f} ms")
    print(f"tokens in a chunk: {record['tokens_together']}")
    print(f"the server's processor time: {record['server_us_per_token']} us a token")
    print(f"sending alone, without HTTP: {record['bare_send_us']} us a token")
    if sys.platform == "linux":
        print(f"{os.cpu_count()} cores, load {record['load']}")


if __name__ == "__main__":
    main()
