"""The server that faults are done to, as users start it (but for `python -O`), and what must hold after each of them.

`Subject.check` is the post-condition P0 of docs/reliability.md: the same processes, nothing left of any request, no
memory gained, and the streams that ran meanwhile as if nothing had been.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.server.conftest import read_answer, wait_for

KEY = "fault-key"
AUTH = {"Authorization": f"Bearer {KEY}"}
CANARIES = 8
CANARY = {"prompt": "Once upon a time", "max_tokens": 120, "temperature": 0, "ignore_eos": True, "stream": True}
GROWTH = 64 << 20  # bytes that the front may gain
POOL = 16  # threads that asyncio and the checkers keep
SECONDS = 60.0  # generous: the machine may be busy
# What the operator's socket tells of requests, in the front and in the engine: all of it is 0 once they have gone.
LEFT = (
    *("requests", "running", "waiting", "kv_used_blocks", "kv_quarantined_blocks", "grammar_rows"),
    *("reserved_bytes", "body_bytes"),
)


def family(pid: int) -> dict[int, str]:
    """A process and all that come from it, with what they run."""
    parents, runs = {}, {}
    for each in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, ValueError):
            stat = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            if stat[0] not in "ZX":
                parents[int(each)] = int(stat[1])
                runs[int(each)] = Path(f"/proc/{each}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    found = {pid}
    while more := {each for each, parent in parents.items() if parent in found} - found:
        found |= more
    return {each: runs.get(each, "") for each in found}


def segments(pids: Iterable[int]) -> list[str]:
    """Shared memory that these processes have mapped, by name; also what is mapped twice."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                if "/dev/shm/" in line or "/memfd:" in line:
                    found.append(line.split(maxsplit=5)[5])
    return sorted(found)


def memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Snapshot:
    pids: tuple[int, int]
    descriptors: tuple[int, int]
    tasks: int
    threads: int
    files: list[str]
    segments: list[str]
    memory: int
    log: int  # bytes of it


class Subject:
    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.tmp = folder / "tmp"
        self.tmp.mkdir()
        self.admin = str(folder / "private" / "admin")
        self.log = folder / "log"
        command = [sys.executable, "-O", "-m", "octavo.cli.main", "serve", "--port", "0", "--device", "cpu"]
        command += ["--dtype", "float32"]  # in half precision, who else is in the batch may decide between near ties
        command += ["--admin-socket", self.admin, "--log-format", "json", *flags]
        env = {**os.environ, "OCTAVO_API_KEY": KEY, "TMPDIR": str(self.tmp), "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as stderr:
            self.process = subprocess.Popen(command, stderr=stderr, stdin=subprocess.DEVNULL, env=env)
        wait_for(lambda: "curl" in self.log.read_text() or self.process.poll() is not None, 3 * SECONDS)
        url = re.search(r"http://127\.0\.0\.1:(\d+)", self.log.read_text())
        assert url is not None and self.process.poll() is None, self.log.read_text()
        self.url, self.port = url[0], int(url[1])
        self.longest_gap, self.form = 0.0, ""
        self.reference = self.stream()

    def close(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()

    # -- what can be known of it

    def engine(self) -> int:
        (pid,) = [pid for pid, what in family(self.process.pid).items() if "octavo.engine.process" in what]
        return pid

    def state(self) -> dict[str, Any]:
        with httpx.Client(transport=httpx.HTTPTransport(uds=self.admin), base_url="http://admin", timeout=20) as client:
            found: dict[str, Any] = client.get("/state").json()
            return found

    def snapshot(self) -> Snapshot:
        state = self.state()
        pids = state["pid"], self.engine()
        front, engine = (len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
        return Snapshot(
            pids, (front, engine), state["tasks"], state["threads"], sorted(os.listdir(self.tmp)),
            segments(pids), memory(pids[0]), self.log.stat().st_size,
        )  # fmt: skip

    def lines(self, since: int = 0) -> list[dict[str, Any]]:
        """The log's lines; each must be JSON of its own, whatever clients put into it."""
        text = self.log.read_bytes()[since:].decode()
        found = [line for line in text.split("\n") if line.startswith("{")]
        assert all(line.isprintable() for line in found)
        return [json.loads(line) for line in found]

    # -- clients

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request on a connection of its own, with the key."""
        headers = {**AUTH, "Connection": "close", **options.pop("headers", {})}
        return httpx.request(method, self.url + path, headers=headers, timeout=SECONDS, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, content=content, **options)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def raw(self, data: bytes) -> bytes:
        """Sends bytes, returns what comes back."""
        with self.connect() as sock:
            with contextlib.suppress(OSError):
                sock.sendall(data)
            return read_answer(sock)

    def head(self, path: str = "/v1/completions", *headers: bytes) -> bytes:
        """A request of raw bytes up to the end of its headers, with the key."""
        lines = (f"POST {path} HTTP/1.1".encode(), b"Host: x", b"Authorization: Bearer " + KEY.encode(), *headers)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def stream(self) -> str:
        """The text of a canary. `longest_gap` keeps the longest silence of all of them, in seconds."""
        text, done, last = "", False, 0.0
        body = json.dumps(CANARY).encode()
        with httpx.stream("POST", f"{self.url}/v1/completions", content=body, headers=AUTH, timeout=SECONDS) as answer:
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                now = time.monotonic()
                self.longest_gap = max(self.longest_gap, now - (last or now))
                last = now
                if line == "data: [DONE]":
                    done = True
                elif line and not line.startswith(":"):  # a comment: it is alive
                    data = json.loads(line.removeprefix("data: "))
                    assert "error" not in data, data
                    text += data["choices"][0]["text"]
        assert done
        return text

    @contextlib.contextmanager
    def canaries(self) -> Iterator[None]:
        """Streams that run throughout, one after the other; every one must end with the reference's text."""
        stop, texts, errors = threading.Event(), [], []

        def run() -> None:
            try:
                while not stop.is_set():
                    texts.append(self.stream())
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=run, daemon=True) for _ in range(CANARIES)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(SECONDS)
        assert not errors, errors
        assert len(texts) >= CANARIES and set(texts) == {self.reference}

    def check(self, before: Snapshot) -> None:
        """P0, once all clients have gone."""
        answer = self.post("/v1/completions", {"prompt": "Once", "max_tokens": 3})
        assert answer.status_code == 200, answer.text

        def left() -> list[str]:
            state = self.state()
            return [name for name in LEFT if state[name]]

        wait_for(lambda: not left(), SECONDS)
        wait_for(lambda: self.state()["tasks"] <= before.tasks, SECONDS)
        # Two checkers, and who renders long chats.
        wait_for(lambda: self.snapshot().descriptors[0] <= before.descriptors[0] + 3, SECONDS)
        after = self.snapshot()
        assert after.pids == before.pids
        assert after.descriptors[1] <= before.descriptors[1] + 2
        assert after.threads <= before.threads + POOL
        assert after.files == before.files
        assert after.segments == before.segments
        assert after.memory - before.memory <= GROWTH, f"{(after.memory - before.memory) / 2**20:.0f} MiB more"
        self.lines(before.log)
