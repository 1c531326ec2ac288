"""API keys: who may come in. Denies by default; a route is open only if its own entry in the table says so."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from octavo.core.errors import InvalidAPIKey


class Keys:
    """The keys of a server; with none, every request passes."""

    def __init__(self, keys: tuple[str, ...], pepper: bytes | None = None) -> None:
        self._digests = [_digest(key.encode()) for key in keys]
        self._pepper = pepper or secrets.token_bytes(16)

    def check(self, authorization: bytes | None, api_key: bytes | None = None) -> bytes:
        """The name of the tenant whose key it is (the same for one key and one pepper); InvalidAPIKey for a wrong one.

        `api_key` is the header x-api-key, where Anthropic's clients have it.

        Digests have one length and all are compared, so the time tells nothing about a key.
        """
        if not self._digests:
            return b""
        if authorization is None and api_key is not None:
            authorization = b"Bearer " + api_key
        scheme, _, key = (authorization or b"").partition(b" ")
        digest = _digest(key.strip())
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != b"bearer" or not any(matches):
            raise InvalidAPIKey("Send a valid API key in the header: Authorization: Bearer KEY")
        return self._name(digest)

    def _name(self, digest: bytes) -> bytes:
        return hmac.digest(self._pepper, digest, "sha256")[:16]

    def number(self, tenant: bytes) -> str:
        """What metrics and the log call the tenant: the place of its key in the configuration, from 1; "" without."""
        found = (i for i, digest in enumerate(self._digests, 1) if self._name(digest) == tenant)
        return str(next(found, ""))

    def salt(self, tenant: bytes, asked: str) -> str:
        """The cache salt of a request: with several keys, tenants never share a cached prefix."""
        return f"{tenant.hex()}:{asked}" if len(self._digests) > 1 else asked


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
