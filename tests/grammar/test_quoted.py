"""Grammars of texts, and of what JSON writes for these texts."""

from __future__ import annotations

import json

import pytest

from octavo.grammar.quoted import quoted
from octavo.grammar.schema import GrammarError
from octavo.grammar.source import lark
from tests.text.parsing.test_forms import accepts, vocabulary

GRAMMARS = [
    ('start: "SELECT" WS NAME (NL NAME)*\nWS: /[ \\t]+/\nNL: "\\n"\nNAME: /[a-z"\\\\]+/i',
     ["SELECT a", 'SELECT \ta\nB"\\c', "select a", "SELECT"]),
    ("start: /[^x]*/", ["", 'abc\n"é\x01\\🙂', "x"]),
    ('start: (A SP?)+ // a "comment"\nA: "a".."c" | "Q"i\n%import common.WS -> SP', ["a b\nc", "qQ", "d"]),
    (r"start: /\d{2,3}(\.|,)\w?\S+/", ['12.a"', "123,_é", "1,a"]),
    ("start: /.+/", ['a"b', "a\nb"]),
    ("start: /.+/s", ["a\nb", ""]),
    (r"start: /[\D\s]{2,}/ | /(a|b\\)?[^\W]/", ["\n ", "55", "b\\_", "_"]),
    ('start: line+\nline: /[^\\n]+/ LF\n%import common.LF', ["a\n", "a\nb\n", "a"]),
    ('start: "a" /\\// "b"', ["a/b", "ab"]),
]  # fmt: skip


@pytest.mark.parametrize(("grammar", "texts"), GRAMMARS)
def test_the_same_texts(grammar: str, texts: list[str]) -> None:
    rewritten = lark(quoted(grammar))
    assert not vocabulary().fault(rewritten)
    found = []
    for text in texts:
        plain = accepts(vocabulary().matcher(lark(grammar)), text)
        written = json.dumps(text, ensure_ascii=False)[1:-1]
        assert accepts(vocabulary().matcher(rewritten), written) == plain, text
        found.append(plain)
    assert {*found} == {True, False}


def test_what_json_does_not_escape_stays() -> None:
    for grammar in ('start: "a" /[b-d]+/\n%ignore " "', 'start: <[5]> "a"', 'start: %json {"type": "null"}'):
        assert quoted(grammar) == grammar


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ('start: "\\n"\n%ignore " "', "%ignore"),
        ('start: "\\n" %json {"type": "null"}', "%json"),
        ('start: "\\n" <[5]>', "<.5.>"),
        ("start: /^a.$/", "anchors"),
        ("start: /(?=a)./", "lookarounds"),
        ("start: /(?i:a)./", "flags"),
        ("start: /(?i)a./", "flags"),
        ("start: /[[:alpha:]]./", "nested set"),
        ("start: /[a-z&&x]./", "intersection"),
        ("start: /\\p{L}./", "bad escape"),
        ("start: /.(/", "missing"),
        ("start: /./x", "of flags"),
        ("start: /[^\\s\\S]./", "no characters"),
        ('start: "ab".."c" "\\n"', "range"),
        ('start: "\\q" /./', "as JSON has it"),
        ("%import common.SQL_COMMENT\nstart: SQL_COMMENT", "SQL_COMMENT"),
    ],
)
def test_what_cannot_be_rewritten(grammar: str, said: str) -> None:
    with pytest.raises(GrammarError, match=said):
        quoted(grammar)
