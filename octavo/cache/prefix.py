"""Which block holds which prefix: chained hashes of whole blocks of tokens.

The hash of a block covers every token up to its end, and whatever else shapes its KV: the adapter, media, and the
tenant's salt. It is BLAKE2b-128 under a key drawn when the process starts, so nobody can build a collision.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

from octavo.core.plan import IntArray

_KEY = os.urandom(32)


def root_hash(adapter: str = "", salt: str = "") -> bytes:
    """Where a chain starts: requests with different adapters or salts never share a block."""
    names = adapter.encode(), salt.encode()
    return blake2b(b"".join(len(n).to_bytes(8, "little") + n for n in names), digest_size=16, key=_KEY).digest()


def chain_hashes(
    parent: bytes, tokens: IntArray, block_size: int, media: Sequence[tuple[int, bytes]] = ()
) -> list[bytes]:
    """A hash for each full block of `tokens`, which follow the block that `parent` stands for.

    `media` lists (index of the first placeholder token, digest of the content): placeholders look alike, so the
    content is mixed into the block where it begins, and through the chain into all that follow.
    """
    data = np.ascontiguousarray(tokens, dtype=np.int32)
    hashes = []
    for start in range(0, len(data) - block_size + 1, block_size):
        hasher = blake2b(parent, digest_size=16, key=_KEY)
        hasher.update(data[start : start + block_size].tobytes())
        for index, digest in media:
            if start <= index < start + block_size:
                hasher.update(index.to_bytes(8, "little") + digest)
        parent = hasher.digest()
        hashes.append(parent)
    return hashes


class PrefixIndex:
    """A plain dict from hash to block, and back."""

    def __init__(self, num_blocks: int) -> None:
        self._block_of: dict[bytes, int] = {}
        self._hash_of: list[bytes | None] = [None] * num_blocks

    def __len__(self) -> int:
        return len(self._block_of)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._block_of

    def lookup(self, hashes: Iterable[bytes]) -> IntArray:
        """The blocks of the longest prefix of `hashes` that is here."""
        blocks = []
        for digest in hashes:
            block = self._block_of.get(digest)
            if block is None:
                break
            blocks.append(block)
        return np.array(blocks, np.int32)

    def present(self, hashes: Iterable[bytes]) -> IntArray:
        """The blocks of all of `hashes` that are here."""
        return np.array([self._block_of[digest] for digest in hashes if digest in self._block_of], np.int32)

    def insert(self, digest: bytes, block: int) -> bool:
        """False if another block already stands for this hash."""
        if digest in self._block_of:
            return False
        self._block_of[digest] = block
        self._hash_of[block] = digest
        return True

    def forget(self, blocks: IntArray) -> None:
        for block in blocks.tolist():
            digest = self._hash_of[block]
            if digest is not None:
                self._block_of.pop(digest, None)
                self._hash_of[block] = None

    def audit(self, published: np.typing.NDArray[np.bool_]) -> IntArray:
        """Blocks that are published and not known here, or the other way round."""
        known = np.zeros(len(published), np.bool_)
        known[list(self._block_of.values())] = True
        hashed = np.array([digest is not None for digest in self._hash_of], np.bool_)
        return np.flatnonzero((known != published) | (hashed != published)).astype(np.int32)

    def check_integrity(self, published: np.typing.NDArray[np.bool_]) -> None:
        for digest, block in self._block_of.items():
            assert self._hash_of[block] == digest, "the two directions of the prefix index differ"
        here = [digest is not None for digest in self._hash_of]
        assert sum(here) == len(self._block_of), "a block has a hash that the index does not know"
        assert np.array_equal(np.array(here, np.bool_), published), "published blocks and the prefix index differ"
