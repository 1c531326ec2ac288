from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.text.parsing.base import Delta, OutputParser, Parsed
from octavo.text.parsing.formats import CALLS_BY_NAME, THINKING_BY_NAME, OutputFormat
from tests.text.parsing.samples import ALL, HARMONY, TOOLS, Sample

Seen = tuple[str, str, list[tuple[str, str]]]


def deltas(parser: OutputParser, pieces: Iterable[str]) -> list[Delta]:
    told = [delta for piece in pieces for delta in parser.feed(piece)]
    return told + parser.finish()


def seen(told: list[Delta]) -> Seen:
    """What a client that puts the deltas together has in the end; checks that it can."""
    begun, parsed = 0, Parsed()
    for delta in told:
        parsed.add(delta)
        if delta.name is not None:
            assert delta.kind == "tool_call" and delta.index == begun and delta.id
            begun += 1
        else:
            assert delta.text and delta.id is None
            assert delta.index == (begun - 1 if delta.kind == "tool_call" else 0)
    assert len({call.id for call in parsed.calls}) == begun
    return parsed.content, parsed.reasoning, [(name, arguments) for _, name, arguments in parsed.calls]


def whole(sample: Sample, text: str) -> Seen:
    return seen(deltas(sample.parser(), [text]))


@pytest.mark.parametrize("sample", ALL, ids=lambda s: f"{s.format.__name__}-{s.text[:40]}")
def test_sample(sample: Sample) -> None:
    expected = sample.content, sample.reasoning, list(sample.calls)
    assert whole(sample, sample.text) == expected
    for cut in range(len(sample.text)):
        assert seen(deltas(sample.parser(), [sample.text[:cut], sample.text[cut:]])) == expected


@pytest.mark.parametrize("sample", ALL, ids=lambda s: f"{s.format.__name__}-{s.text[:40]}")
def test_every_truncation(sample: Sample) -> None:
    """A cut-off answer is the same however it came, and begins as the whole one does."""
    rng = random.Random(0)
    parser = sample.parser()
    told: list[Delta] = []
    for end in range(len(sample.text) + 1):
        text = sample.text[:end]
        found = whole(sample, text)
        assert seen(deltas(sample.parser(), text)) == found
        cuts = sorted(rng.sample(range(end + 1), min(3, end)))
        pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, end], strict=True)]
        assert seen(deltas(sample.parser(), pieces)) == found
        # What has been told does not have to be taken back.
        if end:
            told += parser.feed(sample.text[end - 1])
        content, reasoning, calls = seen(told)
        assert found[0].startswith(content) and found[1].startswith(reasoning)
        assert [name for name, _ in calls] == [name for name, _ in found[2][: len(calls)]]
        assert all(b.startswith(a) for (_, a), (_, b) in zip(calls, found[2], strict=False))


FRAGMENTS = sorted(
    {marker for name in CALLS_BY_NAME.values() for marker in (*name.markers, *name.openers, *name.starts)}
    | {"<think>", "</think>", "[THINK]", "[/THINK]", "<s>", "<", "<|", "<tool", "</", "｜"}
    | {"function", "<function=", ">", "<parameter=", "</parameter>", "</function>", "city", "weather", "now", "other"}
    | {
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        '"',
        "'",
        "\\",
        ":",
        ",",
        ";",
        "=",
        " ",
        "\n",
        "\t",
        "1",
        "-",
        "0.5",
        "true",
        "nul",
    }
    | {
        '{"name": "now"',
        '"name": "weather"',
        '"arguments": ',
        '{"city": "x',
        '"}',
        "}}",
        "\\u00",
        "é",
        "👋",
        "```json\n",
    }
    | {
        "assistant",
        "analysis",
        "commentary",
        "final",
        " to=functions.now",
        "functions.",
        "weather(",
        "city='",
        "days=1",
    }
)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_text_in_any_format(data: st.DataObject) -> None:
    calls = data.draw(st.sampled_from(sorted(CALLS_BY_NAME)))
    thinking = THINKING_BY_NAME[data.draw(st.sampled_from(sorted(THINKING_BY_NAME)))]
    prompt = data.draw(st.sampled_from(["", "<think>\n"]))
    hidden = data.draw(st.sampled_from([frozenset[str](), frozenset({"<s>"}), HARMONY | {"[ARGS]", "<tool_call>"}]))
    text = "".join(data.draw(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=25)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    def parser() -> OutputParser:
        return CALLS_BY_NAME[calls](TOOLS, thinking, prompt, hidden)

    found = seen(deltas(parser(), [text]))
    assert seen(deltas(parser(), pieces)) == found
    assert seen(deltas(parser(), text)) == found


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nothing_is_lost(data: st.DataObject) -> None:
    """A word put anywhere into an answer is told, but where an id or an unknown key of a call that is told stands."""
    sample = data.draw(st.sampled_from([sample for sample in ALL if sample.format is not CALLS_BY_NAME["openai"]]))
    at = data.draw(st.integers(0, len(sample.text)))
    content, reasoning, calls = whole(sample, sample.text[:at] + "ZQ7" + sample.text[at:])
    assert calls or "ZQ7" in content + reasoning


def test_markers_do_not_hold_each_other() -> None:
    """Else which one is found could depend on how the text is cut."""
    for calls in CALLS_BY_NAME.values():
        for markers in (calls.markers, (*calls.openers, *calls.starts)):
            for one in set(markers):
                assert not any(one in other for other in set(markers) - {one}), (calls, one)


def test_arguments_come_as_they_are_written() -> None:
    parser = OutputFormat(CALLS_BY_NAME["hermes"]).parser(TOOLS, "")
    assert parser is not None
    parser.feed('<tool_call>{"name": "weather", "arguments": ')
    assert [delta.text for delta in parser.feed('{"city": "Ro')] == ['{"city": "Ro']
    assert [delta.text for delta in parser.feed("me")] == ["me"]
    assert [delta.text for delta in parser.feed('", "days": 1')] == ['", "days": ']  # 12 may follow
    assert [delta.text for delta in parser.feed("}")] == ["1}"]


def test_ids() -> None:
    hermes, mistral = CALLS_BY_NAME["hermes"](), CALLS_BY_NAME["mistral"]()
    assert hermes.new_id().startswith("call_") and hermes.new_id() != hermes.new_id()
    assert len(mistral.new_id()) == 9 and mistral.new_id().isalnum()


def test_long_answers_take_linear_time() -> None:
    """No call makes what is before or after it be read again: otherwise this would take minutes."""
    text = "<tool_call>" * 20_000 + '<tool_call>{"arguments": {"a": "' * 2_000
    assert whole(Sample(CALLS_BY_NAME["hermes"], text), text) == (text, "", [])
    deep = '{"name": "now", "arguments": ' + "[" * 50_000
    assert whole(Sample(CALLS_BY_NAME["json"], deep), deep) == (deep, "", [])
    brackets = "[now(a=" + "([{" * 50_000
    assert whole(Sample(CALLS_BY_NAME["pythonic"], brackets), brackets) == (brackets, "", [])
