"""The generator of the demo corpus: what it writes is seeded, right, and split without overlap."""

from __future__ import annotations

import operator
import re
import subprocess
import sys
from itertools import islice
from random import Random

import pytest

from octavo.demo import corpus
from octavo.demo.grammar import say

SUM = re.compile(r"(?<![\d+×÷-] )\b(\d+) ([+×÷-]) (\d+) = (-?\d+)")
SIGNS = {"+": operator.add, "-": operator.sub, "×": operator.mul, "÷": operator.floordiv}


def some(seed: int, count: int, split: corpus.Split = "train") -> list[str]:
    return list(islice(corpus.documents(seed, split), count))


def test_a_seed_fixes_the_text() -> None:
    assert some(7, 200) == some(7, 200)
    assert some(7, 200) != some(8, 200)


def test_the_corpus_is_varied() -> None:
    documents = some(7, 2000)
    assert len(set(documents)) > 1950


def test_no_held_out_document_is_in_the_training_split() -> None:
    held_out = {text for seed in (1, 2) for text in some(seed, 15, "heldout")}
    trained = {text for seed in (1, 2, 3) for text in some(seed, 1000)}
    assert not held_out & trained
    assert all(corpus.split_of(text) == "heldout" for text in held_out)


@pytest.mark.parametrize("skill", corpus.SKILLS, ids=lambda skill: skill.__name__)
def test_every_skill_writes_finished_turns(skill: corpus.Skill) -> None:
    r = Random(3)
    for _ in range(60):
        turns = [turn for segment in skill(r) for turn in segment]
        assert turns
        for turn in turns:
            assert turn.user.strip() and turn.answer.strip()
            assert "|" not in turn.user + turn.answer  # no choice is left open
            assert turn.answer == turn.answer.strip()


def test_the_sums_are_right() -> None:
    found = [match for text in some(11, 1500) for match in SUM.findall(text)]
    assert len(found) > 700
    wrong = [(a, sign, b, result) for a, sign, b, result in found if SIGNS[sign](int(a), int(b)) != int(result)]
    assert not wrong


def test_plain_text_and_tool_calls_are_part_of_it() -> None:
    documents = some(5, 400)
    assert any(not text.startswith(corpus.START) for text in documents)
    calls = [text for text in documents if corpus.TOOL_MARKS[0] in text]
    assert calls and all(
        text.startswith(f"{corpus.START}system\n") and f"{corpus.START}tool\n" in text for text in calls
    )


def test_choices_nest_and_slots_are_not_templates() -> None:
    said = {say(Random(seed), "<a|b<c|d>>{x} | e", x="<y|z>{x}") for seed in range(60)}
    assert said == {f"{start}<y|z>{{x}} | e" for start in ("a", "bc", "bd")}
    with pytest.raises(ValueError, match="unclosed"):
        say(Random(0), "<a|b")


def test_the_package_is_light() -> None:
    program = "import sys, octavo.demo; print(sorted({'torch', 'tokenizers', 'jinja2'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
