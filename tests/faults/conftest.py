"""One server for all faults, and around each test the canary streams and the post-condition P0."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.faults.subject import AUTH, Subject


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    subject = Subject(tmp_path_factory.mktemp("subject"))
    form = {"prompt": "x", "max_tokens": 8, "structured_outputs": {"choice": ["a", "b"]}}
    assert subject.post("/v1/completions", form, headers=AUTH).status_code == 200  # its processes are there now
    yield subject
    assert subject.close() == 0


@pytest.fixture
def subject(running: Subject, record_property: Callable[[str, object], None]) -> Iterator[Subject]:
    """The longest silence of a canary is kept with the result: what it may be depends on the machine."""
    before, running.longest_gap = running.snapshot(), 0.0
    with running.canaries():
        yield running
    record_property("longest_gap", round(running.longest_gap, 3))
    running.check(before)
