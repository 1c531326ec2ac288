"""Section G: a machine that has no room left on its disk, or no descriptors. Both pass without a restart."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.subject import CANARY, SECONDS, Subject
from tests.faults.test_models import DEMO
from tests.faults.test_processes import process, under_streams
from tests.server.conftest import error_of, wait_for


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    subject = Subject(tmp_path_factory.mktemp("host"))
    yield subject
    assert subject.close() == 0


@contextlib.contextmanager
def limited(pid: int, what: int, most: int) -> Iterator[None]:
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (most, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, what, before)


def form(size: int) -> dict[str, object]:
    return {"files": {"file": ("a.jsonl", b"x" * size)}, "data": {"purpose": "batch"}}


def test_G13_no_descriptors(server: Subject) -> None:
    """What has a connection goes on, new ones are refused or wait; when others have left, all is as before."""
    asked = {"prompt": "x", "max_tokens": 4, "guided_regex": "[a-f]{3}"}
    assert server.post("/v1/completions", asked).status_code == 200  # its processes are there now
    before = server.snapshot()
    idle = []

    def act() -> None:
        for _ in range(300):
            with contextlib.suppress(OSError):
                idle.append(server.connect())

    with limited(process(server, "front"), resource.RLIMIT_NOFILE, before.descriptors[0] + 40):
        assert under_streams(server, [CANARY] * 8, act) == [server.reference] * 8
        for sock in idle:
            sock.close()
        wait_for(lambda: server.request("GET", "/readyz").status_code == 200, SECONDS)
        assert server.post("/v1/completions", {**asked, "guided_regex": "[a-f]{4}"}).status_code == 200
    server.check(before)


def test_G13_no_room_on_the_disk(server: Subject, tmp_path: Path) -> None:
    """Who wants something stored is told so, and nothing half of it stays. Nobody else notices, not even of the log."""
    assert server.request("POST", "/v1/files", **form(1000)).status_code == 200
    before = server.snapshot()
    with limited(process(server, "front"), resource.RLIMIT_FSIZE, server.log.stat().st_size + 100):
        for _ in range(3):
            answer = server.request("POST", "/v1/files", **form(5_000_000))
            error_of(answer, 503, "storage_unavailable")
        assert under_streams(server, [CANARY] * 8, lambda: None) == [server.reference] * 8
    assert server.request("POST", "/v1/files", **form(5_000_000)).status_code == 200
    files = server.request("GET", "/v1/files").json()["data"]
    assert [file["bytes"] for file in files] == [5_000_000, 1000]
    for file in files:
        assert server.request("DELETE", f"/v1/files/{file['id']}").status_code == 200
    assert server.snapshot().pids == before.pids and not list(server.tmp.glob("octavo-*/upload-*"))
    end = server.log.stat().st_size
    assert server.request("GET", "/nothing", headers={"X-Request-Id": "afterwards"}).status_code == 404
    wait_for(lambda: any(line.get("id") == "afterwards" for line in server.lines(end)), SECONDS)  # the log goes on


def test_G13_folders_that_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was started, before that, and its model, while it serves. When the model is back, so is the server."""
    model, place = tmp_path / "model", tmp_path / "place"
    shutil.copytree(DEMO, model)
    for folder in (place, tmp_path / "server"):
        folder.mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(place)
        place.rmdir()
        server = Subject(tmp_path / "server", "--model", str(model), "--crash-dir", str(tmp_path / "crashes"))
    try:
        chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "guided_regex": "[a-f]{3}"}
        assert server.post("/v1/chat/completions", chat).status_code == 200  # its processes are there now
        model.rename(tmp_path / "elsewhere")
        before = server.snapshot()
        with server.canaries():
            for path in ("/v1/chat/completions", "/tokenize"):
                answer = server.post(path, {**chat, "guided_regex": "[a-f]{4}"})
                assert answer.status_code == 200, answer.text
        server.check(before)
        os.kill(process(server, "engine"), signal.SIGKILL)
        wait_for(lambda: any(line["event"] == "engine_start" for line in server.lines()), SECONDS)
        (tmp_path / "elsewhere").rename(model)
        wait_for(lambda: server.request("GET", "/readyz").status_code == 200, SECONDS)
        assert server.stream() == server.reference
    finally:
        assert server.close() == 0
