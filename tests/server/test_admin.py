"""The operator's socket: who may open it, what it can do, and that the port of the API can do none of it."""

from __future__ import annotations

import stat
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo.core.errors import ConfigError
from octavo.server.admin import private_folder
from tests.server.conftest import Running, StartServer, error_of, wait_for
from tests.server.fake_engine import FakeLLM

COUNT = {"prompt": "count", "max_tokens": 4000}


@pytest.fixture
def place(tmp_path: Path) -> str:
    path = str(tmp_path / "private" / "admin")
    private_folder(path)
    return path


def admin(path: str) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://admin", timeout=20)


def test_the_socket_and_its_folder(start_server: StartServer, place: str) -> None:
    server = start_server(admin_socket=place)
    with admin(place) as client:
        wait_for(lambda: client.get("/state").json()["ready"])
        assert stat.S_IMODE(Path(place).stat().st_mode) == 0o600
        assert stat.S_IMODE(Path(place).parent.stat().st_mode) == 0o700
        state = client.get("/state").json()
        assert (state["requests"], state["kv_total_blocks"], state["draining"]) == ([], 100, False)
        error_of(client.get("/v1/models"), 404, "not_found")
        error_of(client.get("/drain"), 405, "method_not_allowed")
        error_of(client.post("/log_level", content=b'{"level": "loud"}'), 400, "invalid_value", "level")
        error_of(client.post("/abort", content=b"[]"), 400, "invalid_value")
        assert client.post("/log_level", content=b'{"level": "error"}').json() == {"level": "error"}
    server.stop()
    assert not Path(place).exists()


def test_the_port_knows_nothing_of_it(server: Running) -> None:
    for path in (
        "/state",
        "/abort",
        "/drain",
        "/log_level",
        "/shutdown",
        "/pause",
        "/update_weights",
        "/collective_rpc",
    ):
        for method in ("GET", "POST"):
            error_of(httpx.request(method, server.url + path), 404, "not_found")


def test_a_request_is_ended_by_its_id(start_server: StartServer, place: str) -> None:
    server = start_server(FakeLLM(delay=0.01), admin_socket=place)
    answers: list[Any] = []
    headers = {"X-Request-Id": "r1"}
    thread = threading.Thread(target=lambda: answers.append(server.complete(**COUNT, headers=headers)))
    thread.start()
    with admin(place) as client:
        wait_for(lambda: [each["id"] for each in client.get("/state").json()["requests"]] == ["r1"])
        assert client.post("/abort", content=b'{"request_id": "r2"}').json() == {"aborted": 0}
        assert client.post("/abort", content=b'{"request_id": "r1"}').json() == {"aborted": 1}
    thread.join()
    error_of(answers[0], 503, "request_aborted")
    server.idle()


def test_drain(start_server: StartServer, place: str) -> None:
    server = start_server(admin_socket=place)
    with admin(place) as client:
        wait_for(lambda: client.get("/state").json()["ready"])
        assert client.post("/drain").json() == {"draining": True}
    assert server.join() == 0


def test_a_folder_that_others_may_enter(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        private_folder(str(tmp_path / "admin"))
