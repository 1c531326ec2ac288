"""The list of cases and the tests agree."""

from __future__ import annotations

from pathlib import Path

from tests.faults.cases import CASES, PROPERTIES
from tests.faults.report import belongs, nodes_of, own_tests

ROOT = Path(__file__).parents[2]


def test_every_test_has_its_case() -> None:
    ids = [case.id for case in CASES]
    assert len(set(ids)) == len(ids)
    own = own_tests()
    assert {name for name in own if name[0].isupper()} <= set(ids)


def test_every_case_has_tests_or_says_why_not() -> None:
    for case in (*CASES, *PROPERTIES):
        assert nodes_of(case) or case.note, case.id
        for node in case.elsewhere:
            path, _, name = node.partition("::")
            assert (ROOT / path).exists(), node
            assert not name or f"def {name}(" in (ROOT / path).read_text(), node


def test_results_are_found() -> None:
    assert belongs("a/b.py::test_x[1]", "a/b.py::test_x") and belongs("a/b.py::test_x", "a/b.py")
    assert belongs("a/b.py::test_x", "a") and not belongs("a/b.py::test_xy", "a/b.py::test_x")
