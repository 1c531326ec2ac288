"""`PYTHONOPTIMIZE=1 scripts/test`: the product loses its asserts, the tests and what helps them keep theirs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HELPERS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "tests").rglob("*.py")
    if path.stem not in ("__init__", "__main__", "conftest") and not path.stem.startswith("test_")
)


def keeps_its_asserts(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and type(spec.loader).__name__ == "AssertionRewritingHook"


@pytest.mark.parametrize("module", HELPERS)
def test_helpers_keep_their_asserts(module: str) -> None:
    assert keeps_its_asserts(module)


def test_the_product_does_not() -> None:
    assert not keeps_its_asserts("octavo.engine.intake")
