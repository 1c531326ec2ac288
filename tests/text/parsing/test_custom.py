"""The input of custom tools, read out of arguments that come in pieces."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from octavo.text.parsing.custom import InputReader


def read(pieces: list[str]) -> str:
    reader = InputReader()
    return "".join(reader.feed(piece) for piece in pieces) + reader.feed("", ended=True)


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


@given(st.text(), st.lists(st.integers(0, 200)), st.booleans(), st.sampled_from(["{}", " {{ }}"]))
def test_the_text_is_that_of_the_json(text: str, cuts: list[int], ascii: bool, form: str) -> None:
    value = json.dumps(text, ensure_ascii=ascii)
    arguments = f'{{"input": {value}}}' if form == "{}" else f' {{ "input" : {value} }}'
    assert read(pieces(arguments, cuts)) == text


@given(st.text(alphabet='{"input: 5\\ud83x}', max_size=30), st.lists(st.integers(0, 40)))
def test_it_depends_on_the_text_alone(arguments: str, cuts: list[int]) -> None:
    assert read(pieces(arguments, cuts)) == read([arguments])


def test_what_is_not_as_it_should_be() -> None:
    for raw in ("", "{", '{"input": 5}', '{"other": "a"}', '["input"]', "text"):
        assert read([raw]) == raw
    assert read(['{"input": "line\nbreak"}']) == "line\nbreak"
    assert read([r'{"input": "\ud83d"}']) == "\ufffd" and read([r'{"input": "a\ud83dbc"}']) == "a\ufffdbc"
    assert read([r'{"input": "a\ud8']) == "a"
