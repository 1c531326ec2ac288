"""Which web pages may use a server without a key: a browser beside it runs the pages of strangers.

A page can send requests anywhere, with its own origin in the header `Origin`; and a page whose name is made to mean
127.0.0.1 once it is loaded (DNS rebinding) is of the server's own origin, but its name is still in `Host`. With a key
neither matters, since no page knows it.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from octavo.core.errors import OriginRefused
from octavo.server.config import ServerConfig, is_loopback

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
# Names that no stranger can register.
_OWN = (".localhost", ".internal")


class Origins:
    def __init__(self, server: ServerConfig) -> None:
        self.allowed = frozenset(origin.encode() for origin in server.origins)
        self._guards = not server.api_key and b"*" not in self.allowed
        self._local = server.uds is None and is_loopback(server.host)
        self._names = {server.host.lower(), *(urlsplit(origin).hostname or "" for origin in server.origins)}

    def check(self, origin: bytes | None, host: bytes | None) -> None:
        """OriginRefused if a page that nobody allowed may be behind the request."""
        if not self._guards or origin in self.allowed:
            return
        if self._local and host and not self._is_ours(host):
            raise OriginRefused("This server is not known by the name in the header Host; see --allowed-origins.")
        if origin is not None and origin.partition(b"://")[2].lower() != (host or b"").lower():
            raise OriginRefused("Pages of this origin may not use this server; see --allowed-origins.")

    def _is_ours(self, host: bytes) -> bool:
        """It is an address, a name of this machine, or one without a dot, which is of a private network."""
        found = _HOST.fullmatch(host.decode("latin-1"))
        if found is None:
            return False
        name = found[1].lower().rstrip(".")
        if name in self._names or "." not in name or name.endswith(_OWN):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
