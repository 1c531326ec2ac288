"""The sockets that the server listens on. Nothing here knows HTTP: the supervisor opens them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from octavo.core.errors import ConfigError
from octavo.server.config import ServerConfig

# The kernel would grow a socket's send buffer to megabytes, hiding a stalled reader from the transport.
SEND_BUFFER_BYTES = 128 * 1024


@contextlib.contextmanager
def listen(server: ServerConfig) -> Iterator[socket.socket]:
    """What the configuration says. A Unix socket is removed by the process that made it, not by forks of it."""
    if server.uds is None:
        with bind(server.host, server.port) as sock:
            yield sock
        return
    owner = os.getpid()
    with bind_unix(server.uds) as sock:
        try:
            yield sock
        finally:
            if os.getpid() == owner:
                Path(server.uds).unlink(missing_ok=True)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; a ConfigError with one clear line if there is none to be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # "localhost" is two addresses; clients that are told 127.0.0.1 must reach us.
        family, kind, proto, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}: {error.strerror or error}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # accepted sockets inherit it
        sock.bind(address)
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    sock.setblocking(False)
    return sock


def bind_unix(path: str) -> socket.socket:
    """A listening Unix socket that only our own user may open."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.exists(path):
            _remove_stale(path)
        mask = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(mask)
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen on {path}: {error.strerror or error}") from None
    sock.setblocking(False)
    return sock


def _remove_stale(path: str) -> None:
    """Removes what a server that was killed left behind; a socket that answers, or no socket at all, is not ours."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
