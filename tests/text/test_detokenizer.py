"""However an answer is cut into pushes, what is shown is the text that it adds to the prompt, up to a stop string."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.text.detokenizer import Detokenizer
from octavo.text.tokenizer import Tokenizer, load_tokenizer
from tests.text.vocabularies import KINDS, LOCAL, folder_of

BAD = "\ufffd"
UTF8 = [0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xC3, 0xED, 0xA0, 0x20, 0x41, 0xFF]  # pieces of €😀é, and worse


@functools.cache
def load(kind: str) -> Tokenizer:
    return load_tokenizer(folder_of(kind))


def texts() -> st.SearchStrategy[str]:
    pieces = st.sampled_from(
        [
            "👩\u200d🚀",
            "🇫🇷",
            "😀",
            "สวัสดี",
            "ภาษา",
            "日本",
            "語",
            "中文",
            "é",
            "ü",
            " ",
            "  ",
            "the ",
            "fox",
            ".",
            "don't",
            "\n",
        ]
    )
    return st.lists(pieces | st.text(max_size=4), max_size=12).map("".join)


def token_ids(tokenizer: Tokenizer, **sizes: int) -> st.SearchStrategy[list[int]]:
    """Any tokens at all, with many single bytes among them, as invalid as they come."""
    names = [f"<0x{byte:02X}>" for byte in UTF8] + ["â", "Ĥ", "¬", "ð", "Ł", "ĺ", "Ģ", "ÿ", "í", "ł", "a", "Ġ"]
    some_bytes = [i for i in map(tokenizer.token_to_id, names) if i is not None]
    anything = st.integers(0, tokenizer.vocab_size + 2)
    return st.lists(st.sampled_from(some_bytes) | anything if some_bytes else anything, **sizes)


def cuts(ids: list[int], at: list[int]) -> list[list[int]]:
    """`ids` in parts of the lengths `at`, then one by one."""
    parts = []
    for length in at:
        parts.append(ids[:length])
        ids = ids[length:]
    return parts + [[token_id] for token_id in ids]


def run(detokenizer: Detokenizer, parts: list[list[int]]) -> str:
    shown = "".join(detokenizer.push(part[0] if len(part) == 1 else part) for part in parts)
    shown += detokenizer.finish()
    assert detokenizer.finish() == ""
    return shown


CUTS = st.lists(st.integers(0, 5), max_size=4)


@pytest.mark.parametrize("kind", LOCAL)
def test_any_tokens_in_any_parts_equal_the_whole(kind: str) -> None:
    tokenizer = load(kind)

    @given(token_ids(tokenizer, max_size=30), CUTS, st.booleans())
    @settings(max_examples=300, deadline=None)
    def check(ids: list[int], at: list[int], skip: bool) -> None:
        detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
        assert run(detokenizer, cuts(ids, at)) == tokenizer.decode(ids, skip)
        assert detokenizer.num_tokens == len(ids)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_streamed_whole_and_never_half_a_character(kind: str) -> None:
    tokenizer = load(kind)

    @given(texts(), CUTS)
    @settings(max_examples=150, deadline=None)
    def check(text: str, at: list[int]) -> None:
        ids = tokenizer.encode(text)
        detokenizer = Detokenizer(tokenizer)
        whole = tokenizer.decode(ids)
        shown = ""
        for part in cuts(ids, at):
            shown += detokenizer.push(part)
            assert whole.startswith(shown)
        assert shown + detokenizer.finish() == whole

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_continues_its_prompt(kind: str) -> None:
    """Cut a text anywhere, even within a character: the parts make the whole, spaces and all."""
    tokenizer = load(kind)

    @given(texts().filter(lambda text: BAD not in text), st.integers(0, 60), CUTS)
    @settings(max_examples=200, deadline=None)
    def check(text: str, cut: int, at: list[int]) -> None:
        ids = tokenizer.encode(text, add_special_tokens=False)
        prompt, answer = ids[:cut], ids[cut:]
        if tokenizer.decode(prompt).endswith(BAD) and kind != "byte_level":
            while prompt and tokenizer.decode(prompt).endswith(BAD):  # one bad byte makes all of its run bad
                prompt = prompt[:-1]
        before = tokenizer.decode(prompt).rstrip(BAD)
        whole = tokenizer.decode(ids)
        if kind != "end_of_word":  # whose last word changes when another follows
            assert whole.startswith(before)
        expected = whole[len(before) :] if answer else ""
        assert run(Detokenizer(tokenizer, ids[:cut]), cuts(answer, at)) == expected

    check()


def test_the_first_word_after_a_prompt_has_its_space() -> None:
    tokenizer = load("llama2")
    the = tokenizer.encode("the fox", add_special_tokens=False)
    special = tokenizer.encode("")
    assert len(special) == 1
    assert run(Detokenizer(tokenizer, special), [the]) == "the fox"
    assert run(Detokenizer(tokenizer, the), [the]) == " the fox"
    assert run(Detokenizer(tokenizer, special, skip_special_tokens=False), [the]) == " the fox"


def test_a_broken_end_of_the_prompt_is_not_shown() -> None:
    euro = {
        "byte_level": ["â", "Ĥ", "¬"],
        "llama2": ["<0xE2>", "<0x82>", "<0xAC>"],
    }
    for kind, names in euro.items():
        tokenizer = load(kind)
        e2, x82, ac = [tokenizer.token_to_id(name) or 0 for name in names]
        x = tokenizer.token_to_id("x") or 0
        prompt = [x, e2, x82]
        assert run(Detokenizer(tokenizer, prompt), [[ac], [x]]) == "€x"
        assert run(Detokenizer(tokenizer, prompt), [[x], [ac]]) == "x" + BAD
        assert run(Detokenizer(tokenizer, prompt), [[e2], [x]]) == BAD + "x"
        assert run(Detokenizer(tokenizer, prompt), [[e2]]) == BAD
        assert run(Detokenizer(tokenizer, prompt), []) == ""


def test_special_tokens_without_spaces_between() -> None:
    tokenizer = load("wordpiece")
    cls, sep = (tokenizer.token_to_id(token) or 0 for token in ("[CLS]", "[SEP]"))
    ids = [cls, sep, *tokenizer.encode("the fox", add_special_tokens=False), sep, sep]
    apart = Detokenizer(tokenizer, skip_special_tokens=False)
    close = Detokenizer(tokenizer, skip_special_tokens=False, spaces_between_special_tokens=False)
    assert run(apart, [ids]) == tokenizer.decode(ids, False)
    assert run(close, [ids]) == tokenizer.decode(ids, False).replace("[CLS] [SEP]", "[CLS][SEP]").replace(
        "[SEP] [SEP]", "[SEP][SEP]"
    )


def reference_stop(
    tokenizer: Tokenizer, ids: list[int], stops: list[str], min_tokens: int, include: bool
) -> tuple[str, str | None, int]:
    """(text, stop string, tokens used): decode the whole answer again after each token, and look at every position."""
    floor = 0
    for used in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:used])
        if used <= min_tokens:
            floor = max(floor, len(text.rstrip(BAD)))
            continue
        for end in range(floor + 1, len(text) + 1):
            found = [stop for stop in stops if text.endswith(stop, 0, end)]
            if found:
                longest = max(found, key=len)
                return text[: end if include else end - len(longest)], longest, used
    return tokenizer.decode(ids), None, len(ids)


@pytest.mark.parametrize("kind", LOCAL)
def test_stop_strings_equal_a_search_of_the_whole(kind: str) -> None:
    tokenizer = load(kind)
    words = "".join(tokenizer.decode(list(range(tokenizer.vocab_size))).split(BAD))

    @given(st.data(), token_ids(tokenizer, min_size=1, max_size=25), CUTS, st.booleans())
    @settings(max_examples=400, deadline=None)
    def check(data: st.DataObject, ids: list[int], at: list[int], include: bool) -> None:
        # Mostly what does occur, so that stops overlap each other and span tokens.
        text = tokenizer.decode(ids).replace(BAD, "") + "".join(data.draw(st.lists(st.sampled_from(words), max_size=3)))
        spans = st.tuples(st.integers(0, len(text)), st.integers(1, 6)).map(lambda span: text[span[0] :][: span[1]])
        stops = [stop for stop in data.draw(st.lists(spans, max_size=5)) if stop]
        minimum = data.draw(st.integers(0, 4))
        detokenizer = Detokenizer(tokenizer, stop=stops, include_stop=include, min_tokens=minimum)
        expected, stop, used = reference_stop(tokenizer, ids, stops, minimum, include)
        parts = cuts(ids, at)
        shown = ""
        for part in parts:
            shown += detokenizer.push(part)
            assert expected.startswith(shown)
        shown += detokenizer.finish()
        assert (shown, detokenizer.stopped_by, detokenizer.num_tokens) == (expected, stop, used)
        assert detokenizer.push(ids) == detokenizer.finish() == "" or stop is None

    check()


@given(st.text(alphabet="ab", max_size=30), st.lists(st.text(alphabet="ab", min_size=3, max_size=6), max_size=4))
@settings(max_examples=300, deadline=None)
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, stops: list[str]) -> None:
    tokenizer = load("byte_level")
    detokenizer = Detokenizer(tokenizer, stop=stops)
    shown = ""
    for i, char in enumerate(text, 1):
        shown += detokenizer.push(tokenizer.token_to_id(char) or 0)
        if detokenizer.stopped_by is not None:
            break
        ends = [text[:i][-n:] for n in range(1, min(i, 6) + 1)]
        held = max((len(end) for end in ends if any(s.startswith(end) and s != end for s in stops)), default=0)
        assert shown == text[: i - held]


@pytest.mark.parametrize("kind", ["byte_level", "llama2"])
def test_a_stop_string_of_many_bytes(kind: str) -> None:
    tokenizer = load(kind)
    ids = tokenizer.encode("a 😀👩\u200d🚀 b", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer, stop=["x", "👩\u200d🚀"])
    shown = [detokenizer.push(token_id) for token_id in ids]
    assert "".join(shown) == "a 😀"
    assert detokenizer.stopped_by == "👩\u200d🚀"
    # Found with its last byte, not with the token after it.
    assert tokenizer.decode(ids[: detokenizer.num_tokens]) == "a 😀👩\u200d🚀"


def test_ten_thousand_bad_bytes_are_shown_as_they_come() -> None:
    for kind, name in (("byte_level", "ÿ"), ("llama2", "<0xFF>")):
        tokenizer = load(kind)
        ids = [tokenizer.token_to_id(name) or 0] * 10_000
        detokenizer = Detokenizer(tokenizer, stop=["zz"])
        assert [detokenizer.push(token_id) for token_id in ids] == [BAD] * 10_000
        assert detokenizer.finish() == ""


def test_the_window_of_an_unknown_decoder_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens without text (here unknown ids) must not make it decode more and more."""
    tokenizer = load("end_of_word")
    lengths = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, skip: lengths.append(len(ids)) or decode(ids, skip))
    detokenizer = Detokenizer(tokenizer, tokenizer.encode("the quick brown fox jumps over the lazy dog"))
    ids = [10_000] * 200 + tokenizer.encode("once upon a time")
    assert "".join(map(detokenizer.push, ids)) + detokenizer.finish() == " once upon a time"
    assert max(lengths) <= 24


def test_a_tokenizer_of_python_code_streams(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    text = "สวัสดี 😀👩\u200d🚀 日本語 don't"
    ids = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer, ids[:5], stop=["n't"])
    assert run(detokenizer, cuts(ids[5:], [3, 3])) == text[1:-3]
    assert detokenizer.stopped_by == "n't"
