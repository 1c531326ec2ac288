"""What only the operator may do, on a Unix socket of its own (`--admin-socket`); the API's port knows none of it.

    curl --unix-socket PATH http://admin/state                      # what is running, and what it holds
    curl --unix-socket PATH http://admin/abort -d '{"request_id": "r1"}'
    curl --unix-socket PATH http://admin/log_level -d '{"level": "debug"}'
    curl --unix-socket PATH -X POST http://admin/drain              # as SIGTERM does

Who may open the socket is the file system's to say: it is 0600, in a folder that nobody else may enter.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from octavo.core import log
from octavo.core.errors import Aborted, ConfigError, InternalError, MethodNotAllowed, RequestError, RouteNotFound
from octavo.server import fields
from octavo.server.app import App
from octavo.server.http import ClientGone, Exchange, Receive, Response, Scope, Send, json_response

MAX_BODY_BYTES = 64 * 1024
MAX_LISTED = 1000


class Abort(msgspec.Struct):
    request_id: str


class LogLevel(msgspec.Struct):
    level: str


class Admin:
    """An ASGI application beside the API's; `stop` begins a drain."""

    def __init__(self, app: App, stop: Callable[[], None]) -> None:
        self._app = app
        self._stop = stop
        self._table: dict[str, tuple[str, Callable[[bytes], Response]]] = {
            "/state": ("GET", self.state),
            "/abort": ("POST", self.abort),
            "/drain": ("POST", self.drain),
            "/log_level": ("POST", self.log_level),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        try:
            method, answer = self._table.get(exchange.path, ("", None))
            if answer is None:
                raise RouteNotFound("There is nothing at this path.")
            if exchange.method != method:
                raise MethodNotAllowed([method])
            body = await exchange.body(MAX_BODY_BYTES)
            log.event("admin", id=exchange.request_id, path=exchange.path)
            await exchange.respond(answer(body))
        except ClientGone:
            pass
        except RequestError as error:
            await exchange.fail(error)
        except Exception as error:
            log.event("internal_error", logging.ERROR, error=error, id=exchange.request_id)
            await exchange.fail(InternalError())

    def state(self, body: bytes) -> Response:
        app, now = self._app, time.monotonic()
        stats = app.service.llm.stats if app.service is not None else None
        return json_response(
            {
                "pid": os.getpid(),
                "ready": app.service is not None and app.service.llm.ready,
                "draining": app.draining,
                "requests": [
                    {"id": each.request_id, "path": each.path, "seconds": round(now - each.start, 3)}
                    for each in list(app.live)[:MAX_LISTED]
                ],
                "running": stats.running if stats else 0,
                "waiting": stats.waiting if stats else 0,
                "kv_used_blocks": stats.kv_used_blocks if stats else 0,
                "kv_cached_blocks": stats.kv_cached_blocks if stats else 0,
                "kv_total_blocks": stats.kv_total_blocks if stats else 0,
                "kv_quarantined_blocks": stats.kv_quarantined_blocks if stats else 0,
                "grammar_rows": stats.grammar_rows if stats else 0,
                "reserved_bytes": app.service.llm.reserved_bytes if app.service is not None else 0,
                "body_bytes": app.bodies.held,
                "tasks": len(asyncio.all_tasks()),
                "threads": threading.active_count(),
                "descriptors": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None,
            }
        )

    def abort(self, body: bytes) -> Response:
        asked = fields.decode(body, Abort)[0].request_id
        found = [exchange for exchange in self._app.live if exchange.request_id == asked]
        for exchange in found:
            exchange.interrupt(Aborted("The operator ended this request."))
        return json_response({"aborted": len(found)})

    def drain(self, body: bytes) -> Response:
        self._stop()
        return json_response({"draining": True})

    def log_level(self, body: bytes) -> Response:
        level = fields.decode(body, LogLevel)[0].level
        if level not in log.LEVELS:
            raise RequestError(f"level must be one of {', '.join(log.LEVELS)}.", "level")
        log.logger.setLevel(level.upper())
        return json_response({"level": level})


def private_folder(path: str) -> None:
    """Makes the folder of the socket, or checks that it is ours alone; ConfigError if others may enter it."""
    folder = Path(path).absolute().parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise ConfigError(f"--admin-socket {path}: {error.strerror}") from None
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(f"--admin-socket {path}: {folder} must be yours alone (chmod 700 {folder})")
