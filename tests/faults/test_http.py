"""Section A: HTTP and keys."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import socket
import time
from typing import Any

import httpx
import pytest

from octavo.core.config import EngineConfig
from octavo.server.app import App
from octavo.server.config import ServerConfig
from tests.faults.subject import AUTH, KEY, Subject
from tests.server.conftest import error_of, read_answer

OPEN = {"/livez", "/readyz", "/health"}
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE")
BODIES = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/tokenize", "/detokenize")


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    return int(answer.split(b" ")[1])


def error(answer: bytes) -> dict[str, Any]:
    """The error of a raw answer, which closes the connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"x-request-id: " in head.lower() and b"connection: close" in head.lower()
    found: dict[str, Any] = json.loads(body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def test_A1_hosts_and_targets(subject: Subject) -> None:
    hosts = ("x/health?", "a?b", "a#", "a/../", "a/../livez", "", "@", "livez", "x\\livez", "x:80/livez", "[::1]/livez")
    heads = [f"GET /v1/models HTTP/1.1\r\nHost: {host}" for host in hosts]
    heads += [
        "GET /v1/models HTTP/1.1\r\nHost: x\r\nHost: livez",
        "GET http://x/v1/models HTTP/1.1\r\nHost: x",
        "GET http://livez/v1/models?/livez HTTP/1.1\r\nHost: x",
        "GET /v1/models;/livez HTTP/1.1\r\nHost: x",
        "GET /v1/models#/livez HTTP/1.1\r\nHost: x",
        "GET /livez/../v1/models HTTP/1.1\r\nHost: x",
        "GET /livez%2f..%2fv1/models HTTP/1.1\r\nHost: x",
        "GET //livez/v1/models HTTP/1.1\r\nHost: x",
        "GET /LIVEZ HTTP/1.1\r\nHost: x",
        "GET /v1/models HTTP/1.0",
        "GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Original-URL: /livez\r\nX-Rewrite-URL: /livez",
    ]
    for head in heads:
        assert status(subject.raw(head.encode() + b"\r\nConnection: close\r\n\r\n")) in (400, 401), head


def test_A2_every_route_and_method_without_a_key(subject: Subject) -> None:
    app = App(ServerConfig(api_key=("k",)), EngineConfig())
    app.folder.close()
    routes = [route for methods in app._table.values() for route in methods.values()]
    known = {route.path for route in routes}
    assert {route.path for route in routes if route.public} >= OPEN
    public = {(route.method, route.path) for route in routes if route.public}
    paths = {path.replace("{model}", "octavo-demo") for path in known}
    paths |= {"/nothing", "/v1", "/docs", "/livez/", "/invocations", "/pause", "/update_weights", "/collective_rpc"}
    with httpx.Client(base_url=subject.url, timeout=60) as client:
        for path in sorted(paths):
            for method in METHODS:
                if ("GET" if method == "HEAD" else method, path) in public:
                    continue
                answer = client.request(method, path, content=b"{}")
                assert answer.status_code == 401, (method, path)
                assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/nothing", headers=AUTH).status_code == 404  # only after the key


def test_A4_wrong_keys(subject: Subject) -> None:
    with httpx.Client(base_url=subject.url, timeout=60) as client:
        for key in (*(KEY[:i] + "x" for i in range(len(KEY))), KEY[:-1], KEY + "x", "schlüssel", "x" * 50_000):
            answer = client.get("/v1/models", headers={"Authorization": f"Bearer {key}".encode()})
            error_of(answer, 401, "invalid_api_key")
    assert error(subject.raw(b"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer " + b"x" * 10**6))["code"] == (
        "request_too_large"
    )


def test_A5_headers(subject: Subject) -> None:
    for head in (
        b"A: " + b"x" * 10**6,
        b"".join(b"a%d: b\r\n" % i for i in range(10_000)),
        b"a:b\r\n" * 300,
    ):
        answer = subject.raw(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")
        assert status(answer) == 431 and error(answer)["code"] == "request_too_large"
    assert status(subject.raw(b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")) == 431


@pytest.mark.slow
def test_A6_slowloris(subject: Subject) -> None:
    """1000 sockets that send next to nothing are closed after 10 s; the canaries and others are served meanwhile."""
    socks = [subject.connect() for _ in range(1000)]
    body = subject.connect()
    try:
        for sock in socks:
            sock.sendall(b"G")
        body.sendall(subject.head("/v1/completions", b"Content-Length: 100"))
        begin, closed = time.monotonic(), 0
        for second in range(3):
            time.sleep(3)
            assert subject.request("GET", "/v1/models").status_code == 200
            body.sendall(b"{")
            for sock in socks:
                with contextlib.suppress(OSError):
                    sock.sendall(b"ET /livez"[second : second + 1])
        for sock in socks:
            sock.settimeout(60)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
            closed += 1
        assert closed == 1000
        with contextlib.suppress(OSError):
            while time.monotonic() - begin < 60:
                body.sendall(b"{")
                time.sleep(1)
        assert status(read_answer(body)) == 408
    finally:
        for sock in (*socks, body):
            sock.close()


def test_A7_bodies(subject: Subject) -> None:
    answer = subject.raw(subject.head("/v1/completions", b"Content-Length: 10000000000"))
    assert status(answer) == 413 and error(answer)["code"] == "request_too_large"
    bomb = gzip.compress(b'{"prompt": "' + b"x" * 50_000_000)
    refused = subject.post("/v1/completions", bomb, headers={"Content-Encoding": "gzip"})
    error_of(refused, 415, "unsupported_media_type")
    with subject.connect() as sock:
        sock.sendall(subject.head("/v1/completions", b"Transfer-Encoding: chunked"))
        chunk, sent = b"100000\r\n" + b"x" * 2**20 + b"\r\n", 0
        with contextlib.suppress(OSError):
            while sent < 200:
                sock.sendall(chunk)
                sent += 1
    assert sent < 100


# What two parsers in a row may part in two ways: the one before us must never see one request where we see two.
SMUGGLED = {
    "a length and chunks": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 4\r\nContent-Length: 5\r\n\r\n{}   ",
    "one length twice": b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "a list of lengths": b"Content-Length: 2, 2\r\n\r\n{}",
    "a length with a sign": b"Content-Length: +2\r\n\r\n{}",
    "a length in hexadecimal": b"Content-Length: 0x2\r\n\r\n{}",
    "a folded header": b"A: b\r\n c: d\r\nContent-Length: 2\r\n\r\n{}",
    "a line feed alone": b"A: b\nContent-Length: 2\r\n\r\n{}",
    "a carriage return alone": b"A: b\rContent-Length: 2\r\n\r\n{}",
    "a blank before the colon": b"Content-Length : 2\r\n\r\n{}",
    "two codings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "a list of codings": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "another coding last": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a coding like it": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a chunk that ends in a line feed": b"Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n",
    "a chunk that is longer": b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n",
    "a huge chunk": b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "a negative chunk": b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    "a length in a trailer": b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nContent-Length: 5\r\n\r\n",
    "a second host": b"Host: y\r\nContent-Length: 2\r\n\r\n{}",
    "NUL": b"A: \0\r\nContent-Length: 2\r\n\r\n{}",
}


def test_A8_smuggling(subject: Subject) -> None:
    second = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    for what, rest in SMUGGLED.items():
        answer = subject.raw(subject.head().removesuffix(b"\r\n") + rest + second)
        assert status(answer) == 400 and answer.count(b"HTTP/1.1") == 1, what
        assert error(answer)["code"] == "invalid_value"
    old = b"POST /v1/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert status(subject.raw(old + second)) == 400


ODD = {
    "a list": b"[]", "a number": b"5", "a text": b'"x"', "null": b"null", "half": b"{", "nothing": b"",
    "a mark": b"\xef\xbb\xbf{}", "UTF-16": '{"prompt": "x"}'.encode("utf-16"), "NUL": b'{"prompt": "x\0"}',
    "half a character": b'{"prompt": "\\ud800", "input": "\\ud800", "messages": [{"role": "x", "content": "\\ud800"}]}',
    "a key of half a character": b'{"\\ud800": 1}', "NUL after": b"{}\0", "two values": b"{}{}",
    "one key twice": b'{"prompt": "x", "prompt": "y"}', "a deep list": b"[" * 100_000,
    "a deep object": b'{"a":' * 100_000,
    "infinite": b'{"prompt": "x", "input": "x", "temperature": 1e999}', "NaN": b'{"prompt": "x", "temperature": NaN}',
    "a long number": b'{"prompt": "x", "seed": ' + b"9" * 100_000 + b"}", "bytes": bytes(range(128, 256)),
    "a long number of nothing": b'{"what": ' + b"9" * 5_000_000 + b"}",
}  # fmt: skip


def test_A9_odd_json(subject: Subject) -> None:
    with httpx.Client(base_url=subject.url, headers=AUTH, timeout=60) as client:
        for path, (what, body) in itertools.product(BODIES, ODD.items()):
            answer = client.post(path, content=body)
            assert answer.status_code == 400, (path, what, answer.text[:200])
            assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}
            assert "Traceback" not in answer.text and "0x" not in answer.text


TEXTS = """
    model user cache_salt request_id stop guided_regex guided_grammar guided_choice bad_words suffix rid extra_key
    prompt_cache_key reasoning_effort service_tier tool_choice metadata made_up chat_template_kwargs
"""


def test_A9_half_a_character_anywhere(subject: Subject) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ):
        for name in TEXTS.split():
            for value in ("\ud800", {"\ud800": "\ud800"}):
                answer = subject.post(path, {**body, "max_tokens": 1, name: value})
                assert answer.status_code in (200, 400, 404), (path, name, value, answer.text)


def test_A11_ids_and_the_log(subject: Subject) -> None:
    begin = subject.log.stat().st_size
    bad = (b"a\x1b[31mERROR fake", b"x" * 129, b"x" * 60_000, "ü".encode(), b"a b", b"a;b", b"a\tb")
    for given in bad:
        answer = subject.request("GET", "/nothing", headers={"X-Request-Id": given})
        echoed = answer.headers["x-request-id"]
        assert echoed.encode() != given and len(echoed) == 32
    assert status(subject.raw(b"GET / HTTP/1.1\r\nX-Request-Id: a\r\n\x1b[31mERROR fake\r\n\r\n")) == 400
    good = "A-b.c_9" * 4
    answer = subject.request("GET", "/no%1b[31m%0aINFO%20faked", headers={"X-Request-Id": good})
    assert answer.headers["x-request-id"] == good
    lines = [line for line in subject.lines(begin) if line.get("id") == good]
    assert len(lines) == 1 and lines[0]["status"] == 404
    assert not any("faked" in line.get("event", "") for line in subject.lines(begin))


def test_A13_the_port_has_no_admin(subject: Subject) -> None:
    for path in ("/abort", "/drain", "/log_level", "/shutdown", "/debug", "/profile", "/flush_cache"):
        for method in ("POST", "PUT", "DELETE"):
            page = {"Origin": "http://evil.com", "Host": "evil.com"}
            error_of(subject.request(method, path, headers=page), 404, "not_found")
    with socket.socket() as sock:
        sock.connect(("127.0.0.1", subject.port))
        sock.sendall(b"POST /drain HTTP/1.1\r\nHost: evil.com\r\nOrigin: http://evil.com\r\nContent-Length: 0\r\n\r\n")
        assert status(read_answer(sock)) == 401
