"""The web console: its files, and the state of the engine that it draws.

The files are the same for everybody and open to everybody; what they show comes from routes that ask for the key. They
load nothing from elsewhere, and the browser is told to refuse if they tried.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from octavo.core.errors import EngineUnavailable
from octavo.core.picture import Picture
from octavo.server.http import Exchange, Header, Response, json_response
from octavo.version import VERSION

if TYPE_CHECKING:
    from octavo.server.app import App

FOLDER = Path(__file__).parent / "console"
STATE_PATH = "/v1/octavo/state"
TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
POLICY = b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
HEADERS: list[Header] = [
    (b"content-security-policy", POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),  # kept, but asked about: a 304 costs less than a page of an older version
]


class Device(Struct):
    """What the engine said of itself when it was ready."""

    name: str
    dtype: str
    attention: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_blocks: int
    prefix_caching: bool
    ledger: list[tuple[str, str]]


class EngineState(Struct):
    """`picture` is there when the engine is ready."""

    engine: Literal["loading", "ready", "stalled", "restarting", "draining"]
    version: str
    model: str | None = None
    device: Device | None = None
    picture: Picture | None = None


async def state(app: App, exchange: Exchange) -> Response:
    """The engine now. It is asked only when somebody asks us, a few times a second however many they are."""
    service = app.service
    if service is None:
        return json_response(EngineState("loading", VERSION))
    llm, info = service.llm, service.llm.info
    device = Device(
        name=info.device,
        dtype=info.dtype,
        attention=info.attention,
        max_model_len=info.max_model_len,
        max_num_seqs=info.max_num_seqs,
        max_num_batched_tokens=info.max_num_batched_tokens,
        num_blocks=info.num_blocks,
        prefix_caching=info.prefix_caching,
        ledger=info.ledger,
    )
    found = EngineState("draining" if app.draining else "ready", VERSION, service.names[0], device)
    try:
        if llm.ready:
            found.picture = await llm.look()
    except EngineUnavailable:
        pass
    if found.picture is None:
        found.engine = "stalled" if llm.alive else "restarting"
    return json_response(found)


def pages() -> Iterator[tuple[str, Callable[[Exchange], Response]]]:
    """Each path and what answers it."""
    for file in sorted(FOLDER.iterdir()):
        if file.suffix in TYPES:
            path = "/" if file.name == "index.html" else f"/console/{file.name}"
            yield path, _page(file.read_bytes(), TYPES[file.suffix])


def _page(body: bytes, media_type: bytes) -> Callable[[Exchange], Response]:
    tag = b'"' + hashlib.sha256(body).hexdigest()[:32].encode() + b'"'
    headers = [*HEADERS, (b"etag", tag)]

    def answer(exchange: Exchange) -> Response:
        known = [each.strip().removeprefix(b"W/") for each in (exchange.header(b"if-none-match") or b"").split(b",")]
        if tag in known:
            return Response(b"", 304, media_type, list(headers))
        return Response(body, 200, media_type, list(headers))

    return answer
