"""The targets of the fuzzer on their seeds, on seeds with a few bytes changed, and on what once was a finding."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.targets import SEEDS, TARGETS, mutated

FOUND: dict[str, list[bytes]] = {
    "schemas": [
        b'{"type": [{"a": 1}, "string"]}',
        b'{"type": "object", "properties": {"a": {}}, "required": [{}, "a"]}',
        b'{"type": "array", "minItems": 1e999, "prefixItems": [{"type": "null"}]}',
        b'{"type": "array", "minItems": NaN, "maxItems": -Infinity}',
    ],
}


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_what_is_near_them(name: str) -> None:
    rng = random.Random(name)
    for data in (*SEEDS[name], *FOUND.get(name, ())):
        TARGETS[name](data)
        for _ in range(10 if name == "schemas" else 100):
            TARGETS[name](mutated(data, rng))
