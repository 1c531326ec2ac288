"""The targets of the fuzzer on their seeds, on seeds with a few bytes changed, and on what once was a finding."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.targets import SEEDS, TARGETS

FOUND: dict[str, list[bytes]] = {}


def mutated(seed: bytes, rng: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(3):
            case 0:
                data[at:at] = rng.randbytes(rng.randint(1, 3))
            case 1:
                del data[at : at + rng.randint(1, 3)]
            case _:
                data[at : at + 1] = rng.choice([b'"', b"{", b"}", b"[", b"\\", b"0", b"-", b"\xff", b"<", b"\0"])
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_what_is_near_them(name: str) -> None:
    rng = random.Random(name)
    for data in (*SEEDS[name], *FOUND.get(name, ())):
        TARGETS[name](data)
        for _ in range(10 if name == "schemas" else 100):
            TARGETS[name](mutated(data, rng))
