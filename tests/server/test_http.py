"""HTTP itself: what a socket may send, who may come in, how much is read, and what is said of errors."""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import socket
import statistics
import time
from typing import Any

import httpx
import pytest

from octavo.core import log
from octavo.core.errors import InvalidAPIKey
from octavo.server import http, transport
from octavo.server.auth import Keys
from octavo.server.pages import pages
from tests.server.conftest import Running, StartServer, error_of, own_log, read_answer, wait_for

KEY = "secret-key-1"


@pytest.fixture(scope="module")
def locked() -> Any:
    """A server with a key, whose address others could reach."""
    from octavo.core.config import EngineConfig
    from octavo.server.config import ServerConfig
    from tests.server.fake_engine import FakeLLM

    running = Running(FakeLLM(), ServerConfig(port=0, log_level="error", api_key=(KEY,)), EngineConfig())
    running.start()
    yield running
    running.stop()


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    return int(answer.split(b" ")[1])


def error_body(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"x-request-id: " in head.lower()
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# -- who may come in


def test_every_route_and_method_needs_the_key(locked: Running) -> None:
    routes = [route for methods in locked.serving.app._table.values() for route in methods.values()]
    public = {(route.method, route.path) for route in routes if route.public}
    files = {("GET", path) for path, _ in pages()}  # the console's, which hold nothing of ours
    assert public == {("GET", "/livez"), ("GET", "/readyz"), ("GET", "/health")} | files
    paths = {route.path.replace("{model}", "fake") for route in routes} | {"/", "/nothing", "/v1", "/docs", "/livez/"}
    client = httpx.Client()
    for path in paths:
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"):
            known = (("GET" if method == "HEAD" else method), path) in public
            response = client.request(method, locked.url + path, content=b"{}")
            assert response.status_code == (200 if known else 401), (method, path)
            if not known and method != "HEAD" and not path.startswith("/v1/messages"):
                error_of(response, 401, "invalid_api_key")
                assert response.headers["www-authenticate"] == "Bearer"


def test_with_the_key(locked: Running) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    assert locked.get("/v1/models", headers=key).status_code == 200
    assert locked.get("/metrics", headers={"authorization": f"bearer  {KEY}"}).status_code == 200
    error_of(locked.get("/nothing", headers=key), 404, "not_found")
    assert locked.client(api_key=KEY).models.list().data[0].id == "fake"


@pytest.mark.parametrize(
    "value",
    [
        *("", "Bearer", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Bearer x{KEY}"),
        *(f"Bearer {KEY} {KEY}", "Bearer " + "x" * 60_000, "Bearer schlüssel", f"Bearer {KEY.upper()}"),
    ],
)
def test_wrong_keys(locked: Running, value: str) -> None:
    error_of(locked.get("/v1/models", headers={"Authorization": value.encode()}), 401, "invalid_api_key")


def timing(keys: Keys, first: bytes, second: bytes, count: int) -> float:
    """How probable it is that the difference of two wrong keys' mean times is chance (Welch's test)."""
    times: tuple[list[int], list[int]] = ([], [])
    order = [i % 2 for i in range(2 * count)]
    random.Random(0).shuffle(order)
    for which in order:
        key = (first, second)[which]
        begin = time.perf_counter_ns()
        with contextlib.suppress(InvalidAPIKey):
            keys.check(key)
        times[which].append(time.perf_counter_ns() - begin)
    # What the machine did meanwhile is in the tail.
    low, high = (sorted(each)[: int(0.9 * count)] for each in times)
    error = (statistics.variance(low) / len(low) + statistics.variance(high) / len(high)) ** 0.5
    return math.erfc(abs(statistics.mean(low) - statistics.mean(high)) / error / 2**0.5)


@pytest.mark.slow
def test_the_time_tells_nothing_about_a_key() -> None:
    """20,000 keys that are wrong at once against 20,000 that are right but for the end. A leak would show each time."""
    known = "k" * 64
    keys = Keys((known, "other"))
    wrong, nearly = b"Bearer " + b"x" * 64, b"Bearer " + known[:-1].encode() + b"x"
    found = [timing(keys, wrong, nearly, 20_000) for _ in range(5)]
    assert max(found) > 0.01, found


@pytest.mark.parametrize(
    "head",
    [
        *(
            b"GET /v1/models HTTP/1.1\r\nHost: " + host
            for host in (b"x/health?", b"a?b", b"a#", b"a/../livez", b"", b"@")
        ),
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nHost: y/livez",
        b"GET http://x/v1/models HTTP/1.1\r\nHost: x",
        b"GET http://livez/v1/models?/livez HTTP/1.1\r\nHost: x",
        b"GET /v1/models;/livez HTTP/1.1\r\nHost: x",
        b"GET /v1/models#/livez HTTP/1.1\r\nHost: x",
        b"GET //livez HTTP/1.1\r\nHost: x",
        b"GET /livez/../v1/models HTTP/1.1\r\nHost: x",
        b"GET /livez%2f..%2fv1/models HTTP/1.1\r\nHost: x",
        b"GET /v1/models/%2e%2e/%2e%2e/livez HTTP/1.1\r\nHost: x",
        b"GET /livez%00 HTTP/1.1\r\nHost: x",
        b"OPTIONS * HTTP/1.1\r\nHost: x",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x",
        b"GET /v1/models HTTP/1.0",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Original-URL: /livez\r\nX-HTTP-Method-Override: GET",
        b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 0",
    ],
    ids=lambda head: head.decode()[:40],
)
def test_no_way_around_the_key(locked: Running, head: bytes) -> None:
    assert status_of(locked.raw(head + b"\r\nConnection: close\r\n\r\n")) in (400, 401)


def test_keys_part_their_caches(start_server: StartServer) -> None:
    server = start_server(api_key=("a", "b"))
    for key, body in (("a", {}), ("b", {}), ("a", {"cache_salt": "x"}), ("a", {})):
        answer = server.complete(**body, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 200
    assert server.llm is not None
    first, other, salted, again = server.llm.salts
    assert first == again
    assert len({first, other, salted}) == 3
    single = start_server(api_key=("a",))
    single.complete(cache_salt="s", headers={"Authorization": "Bearer a"})
    assert single.llm is not None and single.llm.salts == ["s"]


# -- what is not a request of ours


def test_unknown_paths_and_methods(server: Running) -> None:
    error_of(server.get("/v2/models"), 404, "not_found")
    response = server.get("/v1/chat/completions")
    error_of(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    error_of(server.post("/v1/models", {}), 405, "method_not_allowed")
    assert httpx.head(f"{server.url}/v1/models").status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
        b"GET / HTTP/1.1\r\n: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: x\0y\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=lambda data: repr(data[:40]),
)  # fmt: skip
def test_not_http(server: Running, data: bytes) -> None:
    answer = server.raw(data)
    assert status_of(answer) == 400
    assert error_body(answer)["code"] == "invalid_value"
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 1_000_000,
        b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"".join(b"a%d: b\r\n" % i for i in range(10_000)),
        b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"a:b\r\n" * 300,
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x",
        b"GET /" + b"x" * 10_000_000,
    ],
    ids=["long header", "many headers", "some headers", "long target", "endless target"],
)
def test_too_long_a_head(server: Running, head: bytes) -> None:
    answer = server.raw(head + b"\r\n\r\n")
    assert status_of(answer) == 431
    assert error_body(answer)["code"] == "request_too_large"


def test_a_long_body_in_one_packet_with_its_head_is_no_long_head(server: Running) -> None:
    body = json.dumps({"prompt": "say:x", "metadata": "y" * 300_000}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert status_of(server.raw(head + body)) == 200


# -- bodies


def test_too_long_a_body(server: Running) -> None:
    limit = 8 * 2**20
    answer = server.raw(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n")
    assert status_of(answer) == 413
    assert error_body(answer)["code"] == "request_too_large"
    assert b"connection: close" in answer.lower()
    # A body that is somewhat too long is read to its end, so that the client gets to read the answer.
    error_of(server.post("/v1/completions", b"x" * (limit + 1)), 413, "request_too_large")
    assert server.post("/v1/completions", b"x" * limit).status_code == 400


def test_an_endless_body(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
        sent = 0
        with pytest.raises(OSError):
            while sent < 200:
                sock.sendall(chunk)
                sent += 1
    assert sent < 100


def test_compressed_bodies_are_not_unpacked(server: Running) -> None:
    import gzip

    bomb = gzip.compress(b'{"prompt": "' + b"x" * 50_000_000)
    error_of(server.post("/v1/completions", bomb, headers={"Content-Encoding": "gzip"}), 415, "unsupported_media_type")


def test_slow_heads_and_bodies(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(http, "BODY_SECONDS", 0.2)
    begin = time.monotonic()
    assert server.raw(b"") == b""  # a connection that says nothing
    assert server.raw(b"GET /livez HTTP/1.1\r\nHost: x\r\nA: b") == b""
    body = server.raw(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert status_of(body) == 408
    assert error_body(body)["code"] == "request_timeout"
    with server.connect() as sock:  # a byte at a time is no faster
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(10):
                sock.sendall(b"{")
                time.sleep(0.05)
        assert status_of(read_answer(sock)) == 408
    with server.connect() as sock:  # the second head of a connection has no more time than the first
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status_of(read_answer(sock)) == 200
        sock.sendall(b"GET /livez")
        assert read_answer(sock) == b""
    assert time.monotonic() - begin < 5
    assert server.chat().status_code == 200


def test_a_client_that_leaves_in_its_body(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert server.chat().status_code == 200


def test_100_continue(server: Running) -> None:
    body = b'{"prompt": "say:x"}'
    with server.connect() as sock:
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
            % len(body)
        )
        assert sock.recv(100).startswith(b"HTTP/1.1 100 Continue")
        sock.sendall(body)
        assert status_of(read_answer(sock)) == 200


def test_pipelined_requests_are_answered_in_order(server: Running) -> None:
    def request(text: str) -> bytes:
        body = json.dumps({"prompt": f"say:{text}"}).encode()
        return b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    with server.connect() as sock:
        sock.sendall(request("one") + request("two") + b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        sock.settimeout(5)
        data = b""
        while chunk := sock.recv(65536):
            data += chunk
    assert data.index(b'"text":"one"') < data.index(b'"text":"two"') < data.index(b'{"status":"alive"}')


def test_garbage_after_a_request_never_mixes_with_its_answer(server: Running) -> None:
    body = json.dumps({"prompt": "count", "max_tokens": 3000, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = server.raw(head + body + b"\x00garbage\r\n\r\n")
    assert answer.count(b"HTTP/1.1") <= 1


def completion(*headers: bytes, say: str = "x", **options: Any) -> bytes:
    body = json.dumps({"prompt": f"say:{say}", **options}).encode()
    head = (b"POST /v1/completions HTTP/1.1", b"Host: x", *headers, b"Content-Length: %d" % len(body))
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def all_of(server: Running, data: bytes) -> bytes:
    """What comes back until the server closes."""
    found = b""
    with server.connect() as sock, contextlib.suppress(ConnectionError):
        sock.sendall(data)
        while chunk := sock.recv(65536):
            found += chunk
    return found


LAST = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
JAVA = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA")


@pytest.mark.parametrize("pieces", [1, 7, 10_000])
def test_offers_of_other_protocols_are_ignored(server: Running, pieces: int) -> None:
    """With a body, in pieces, and with requests that follow: nothing is taken for another protocol's bytes."""
    socket_offer = (b"Connection: keep-alive, Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13")
    data = completion(*JAVA, say="one") + completion(*socket_offer, say="two") + completion(say="three") + LAST
    with server.connect() as sock:
        for at in range(0, len(data), pieces):
            sock.sendall(data[at : at + pieces])
        found = b""
        while chunk := sock.recv(65536):
            found += chunk
    assert found.count(b"HTTP/1.1 200 OK") == 4
    assert found.index(b'"one"') < found.index(b'"two"') < found.index(b'"three"') < found.index(b"alive")
    answer = server.raw(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: upgrade, close\r\nUpgrade: h2c\r\n\r\n")
    assert status_of(answer) == 200 and b"connection: close" in answer.lower()


@pytest.mark.parametrize(
    "data",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT /livez HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: y\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    ],
)
def test_what_is_no_offer(server: Running, data: bytes) -> None:
    assert status_of(server.raw(data)) == 400


def test_trailers_are_no_headers(locked: Running) -> None:
    """A key, a length or an id after the body counts for nothing, also when all comes in one packet."""
    chunked = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    body = b'\r\n12\r\n{"prompt":"say:x"}\r\n0\r\n'
    trailers = b"Authorization: Bearer secret-key-1\r\nX-Request-Id: own\r\n\r\n"
    assert status_of(locked.raw(chunked + body + trailers)) == 401
    answer = locked.raw(chunked + b"Authorization: Bearer secret-key-1\r\n" + body + trailers)
    assert status_of(answer) == 200 and b"x-request-id: own" not in answer


@pytest.mark.parametrize("end", [b"0\r\nA: %s", b"0\r\n%s", b"0\r\nA: b\r\n%s: c", b"2;%s"])
def test_endless_trailers(server: Running, end: bytes) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"
    before, _, _ = end.partition(b"%s")
    with server.connect() as sock:
        sent = 0
        with contextlib.suppress(OSError):
            sock.sendall(head + before)
            while sent < 100:
                sock.sendall(b"a" * 2**20)
                sent += 1
    assert sent < 100


def test_a_body_that_nobody_reads(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer has been given: the rest of the body has a while, then the connection ends."""
    monkeypatch.setattr(transport, "UNREAD_SECONDS", 0.2)
    with server.connect() as sock:
        sock.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n")
        assert status_of(read_answer(sock)) == 404
        with pytest.raises(OSError):
            for _ in range(1000):
                sock.sendall(b"x")
                time.sleep(0.01)
    with server.connect() as sock:  # one that does come costs the connection nothing
        sock.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        assert status_of(read_answer(sock)) == 404
        sock.sendall(b"12345")
        time.sleep(0.3)
        sock.sendall(LAST)
        assert status_of(read_answer(sock)) == 200


def test_a_client_that_pipelines_and_leaves(server: Running) -> None:
    """What it asked for first ends, although others wait behind it."""
    endless = completion(prompt="count", max_tokens=4000, stream=True)
    for _ in range(5):
        with server.connect() as sock:
            sock.sendall(endless + endless)
            assert sock.recv(10)
    server.idle()


@pytest.mark.parametrize("options", [{}, {"stream": True}])
def test_a_client_that_closes_its_sending_side_has_left(server: Running, options: dict[str, Any]) -> None:
    """What the network tells us is the same as of one that is gone, for whom nothing more should be computed."""
    with server.connect() as sock:
        sock.sendall(completion(prompt="count", max_tokens=4000, **options))
        wait_for(lambda: bool(server.llm and server.llm.live))
        sock.shutdown(socket.SHUT_WR)
        assert b"[DONE]" not in read_answer(sock)
    server.idle()


def test_too_many_pipelined(server: Running) -> None:
    livez = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    assert all_of(server, livez * 30 + LAST).count(b"HTTP/1.1 200") == 31
    assert all_of(server, livez * 3000).count(b"HTTP/1.1 200") < 3000
    assert server.chat().status_code == 200


# -- ids and the log


@pytest.mark.parametrize("given", [b"a\x1b[31m", b"x" * 129, b"x" * 60_000, "ü".encode(), b"a b", b"", b"a;b"])
def test_ids_that_are_not_echoed(server: Running, given: bytes) -> None:
    answer = server.get("/livez", headers={"X-Request-Id": given})
    assert answer.headers["x-request-id"].encode() != given
    assert len(answer.headers["x-request-id"]) == 32


def test_ids_that_are(server: Running) -> None:
    for given in ("a", "A-b.c_9", "x" * 128):
        assert server.get("/livez", headers={"X-Request-Id": given}).headers["x-request-id"] == given


@pytest.fixture
def lines(start_server: StartServer) -> Any:
    """A server whose log is a list of lines."""
    stream = io.StringIO()
    server = start_server()
    with own_log():
        log.setup("info", "json", stream)
        yield server, lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_one_line_a_request_without_its_text(lines: Any) -> None:
    server, read = lines
    assert server.chat("my secret", request_id="r1").status_code == 200
    assert server.chat(temperature=-1).status_code == 400
    server.get("/no%1b[31m%0aINFO%20faked")
    server.get("/livez")
    wait_for(lambda: len(read()) == 3)
    good, bad, lost = read()
    assert {k: good[k] for k in ("event", "id", "path", "status")} == {
        "event": "request", "id": "r1", "path": "/v1/chat/completions", "status": 200,
    }  # fmt: skip
    assert (good["prompt_tokens"], good["completion_tokens"], good["finish"]) == (31, 10, "stop")
    assert (bad["status"], bad["code"], bad["param"]) == (400, "invalid_value", "temperature")
    assert lost["status"] == 404
    assert "secret" not in json.dumps(read())


def test_faults_of_ours_say_nothing(lines: Any) -> None:
    server, read = lines
    server.llm.broken = RuntimeError("prompt was /secret/path 0x7f00")
    response = server.chat(request_id="r2")
    error = error_of(response, 500, "internal_error")
    assert (error["type"], "secret" in response.text) == ("server_error", False)
    fault = next(line for line in read() if line["event"] == "internal_error")
    assert fault["id"] == "r2"
    assert "RuntimeError" in fault["traceback"]


def test_a_client_that_is_refused_can_ask_again(server: Running) -> None:
    """A refusal before the body is read leaves the connection in order."""
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(b"POST /v1/nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70000)
        assert status_of(read_answer(sock)) == 404
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status_of(read_answer(sock)) == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "The body is empty: it must be a JSON object."),
        (b"hello", "The body is not valid JSON in UTF-8: invalid character (byte 0)."),
        (b"{'a': 1}", "The body is not valid JSON in UTF-8: object keys must be strings (byte 1)."),
        (b'{"prompt": "x"', "The body is not valid JSON in UTF-8: it ends too early."),
        (b'{"prompt": "\xff"}', "The body is not valid JSON in UTF-8."),
        (b"{}", "prompt: The field is missing"),
    ],
)
def test_errors_say_where_a_body_is_wrong(server: Running, body: bytes, said: str) -> None:
    assert server.post("/v1/completions", body).json()["error"]["message"] == said


def test_errors_say_what_was_probably_meant(server: Running) -> None:
    for path, meant in (
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/v1/model", "/v1/models"),
        ("/metric", "/metrics"),
    ):
        error = error_of(server.post(path, b"{}"), 404, "not_found")
        assert f"did you mean {meant}?" in error["message"]
    assert "/openapi.json" in error_of(server.get("/quite/another"), 404, "not_found")["message"]
    wrong = error_of(server.complete(model="gpt-4"), 404, "model_not_found", "model")
    assert "this server has fake" in wrong["message"]


@pytest.mark.parametrize(
    ("path", "body", "param", "choices"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "robot"}]}, "messages[0].role", "developer, system, user"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "movie"}]}]},
            "messages[0].content[0].type",
            "text, image_url, input_audio",
        ),
        ("/v1/responses", {"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type", "custom, function"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "reasoning_effort": "much"},
            "reasoning_effort",
            "none, minimal, low",
        ),
    ],
)
def test_errors_say_what_there_is_to_choose(
    server: Running, path: str, body: dict[str, Any], param: str, choices: str
) -> None:
    message = error_of(server.post(path, body), 400, "invalid_value", param)["message"]
    told = message.partition("it must be one of ")[2].split(", ")
    assert set(choices.split(", ")) <= set(told), message


def test_the_engine_that_a_header_asks_for(server: Running) -> None:
    assert server.complete(headers={"X-data-parallel-rank": "0"}).status_code == 200
    other = server.complete(headers={"X-data-parallel-rank": "3"})
    error_of(other, 400, "invalid_value", "x-data-parallel-rank")
