"""Web pages that use the server of whoever looks at them: refused, unless they were allowed or need a key."""

from __future__ import annotations

import httpx
import pytest

from octavo.server.config import ServerConfig
from octavo.server.origins import Origins
from tests.server.conftest import Running, StartServer, error_of


def passes(origin: str | None, asked: str | None, **options: object) -> bool:
    origins = Origins(ServerConfig(**options))  # type: ignore[arg-type]
    try:
        origins.check(origin.encode() if origin is not None else None, asked.encode() if asked is not None else None)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "box:80", "a.localhost", "", None, "x"])
def test_names_of_this_machine(host: str | None) -> None:
    assert passes(None, host)


@pytest.mark.parametrize("host", ["evil.com", "evil.com:8000", "127.0.0.1.nip.io", "a@127.0.0.1", "x/health?", "1.2.3"])
def test_names_that_a_stranger_may_own(host: str) -> None:
    assert not passes(None, host)
    assert not passes(f"http://{host}", host)
    assert passes(None, host, api_key=("k",))
    assert passes(None, host, host="0.0.0.0", insecure=True)  # reached by whatever names it has
    assert passes(None, host, uds="s")  # no browser speaks to a Unix socket; a proxy before it has names of its own


def test_origins() -> None:
    assert passes("http://localhost:8000", "localhost:8000")
    assert passes("http://10.0.0.5:8000", "10.0.0.5:8000", host="0.0.0.0", insecure=True)
    for origin in ("http://evil.com", "http://localhost:3000", "null", "", "file://", "http://localhost:8000.evil.com"):
        assert not passes(origin, "localhost:8000"), origin
        assert not passes(origin, "10.0.0.5:8000", host="0.0.0.0", insecure=True), origin
        assert passes(origin, "localhost:8000", api_key=("k",)), origin
        assert passes(origin, "localhost:8000", allowed_origins=("*",)), origin
    assert passes("http://localhost:3000", "localhost:8000", allowed_origins=("http://localhost:3000",))
    assert passes(None, "llm.example.com", allowed_origins=("https://llm.example.com",))  # behind a proxy


def test_pages_are_refused(server: Running) -> None:
    page = {"Origin": "http://evil.com"}
    for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("DELETE", "/v1/files/x"), ("PUT", "/x")):
        refused = httpx.request(method, server.url + path, headers=page, content=b"{}")
        assert error_of(refused, 403, "origin_not_allowed")["type"] == "permission_error"
        assert "access-control-allow-origin" not in refused.headers
    error_of(server.get("/v1/models", headers={"Host": "evil.com"}), 403, "origin_not_allowed")
    assert server.get("/livez", headers={"Host": "evil.com"}).status_code == 200
    assert server.post("/v1/messages", {}, headers=page).json()["error"]["type"] == "permission_error"
    assert server.complete(headers={"Origin": server.url}).status_code == 200


def test_pages_that_are_allowed(start_server: StartServer) -> None:
    server = start_server(allowed_origins=("https://chat.example.com",))
    answer = server.complete(headers={"Origin": "https://chat.example.com"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://chat.example.com"
    error_of(server.complete(headers={"Origin": "https://other.example.com"}), 403, "origin_not_allowed")
