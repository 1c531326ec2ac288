"""The log: one line an event, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from octavo.core import log
from tests.server.conftest import own_log

NASTY = ["a\nb", "a\r\n\x1b[31mERROR fake", "\u2028\u202e", "\ud800", 'q"uo=te', "", "\x00\x7f\x9b", "x" * 10_000]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with own_log():
        yield


@pytest.mark.parametrize("text", NASTY)
def test_text_is_one_printable_line(text: str) -> None:
    stream = io.StringIO()
    log.setup(stream=stream)
    log.event("request", id=text, status=200, gone=None)
    logging.getLogger("octavo.engine").warning("loaded %s", text)
    lines = stream.getvalue().split("\n")
    assert len(lines) == 3 and lines[2] == ""
    assert all(line.isprintable() for line in lines)
    assert lines[0].endswith(" status=200") and "gone" not in lines[0]
    assert len(lines[0]) < 2000
    assert " request id=" in lines[0]


@pytest.mark.parametrize("text", NASTY)
def test_json_gives_back_what_went_in(text: str) -> None:
    stream = io.StringIO()
    log.setup(format="json", stream=stream)
    log.event("request", id=text, seconds=1.23456789, ok=True)
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    assert found["id"] == (text if len(text) <= log.MAX_FIELD else text[: log.MAX_FIELD - 3] + "...")
    assert (found["event"], found["level"], found["seconds"], found["ok"]) == ("request", "info", 1.234568, True)


def test_a_field_cannot_be_forged() -> None:
    stream = io.StringIO()
    log.setup(stream=stream)
    log.event("request", id="x status=500", path="a=b")
    assert stream.getvalue().rstrip().endswith('request id="x status=500" path="a=b"')


@pytest.mark.parametrize("format", log.FORMATS)
def test_a_traceback_is_part_of_its_line(format: str) -> None:
    stream = io.StringIO()
    log.setup(format=format, stream=stream)
    try:
        raise KeyError("what")
    except KeyError as error:
        log.event("internal_error", logging.ERROR, error=error, id="r")
    (line,) = stream.getvalue().splitlines()
    assert "KeyError" in line and "test_log.py" in line


def test_levels() -> None:
    stream = io.StringIO()
    log.setup("warning", stream=stream)
    log.event("quiet")
    log.event("loud", logging.WARNING)
    logging.getLogger("uvicorn.error").warning("not ours to say")
    assert [line.split()[2] for line in stream.getvalue().splitlines()] == ["loud"]
