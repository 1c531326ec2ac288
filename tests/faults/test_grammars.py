"""Section C: templates, grammars and schemas that are meant to harm, against a server that serves others meanwhile."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tests.faults.subject import Subject
from tests.server.conftest import error_of

CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4}


def deep(levels: int) -> str:
    return '{"properties": {"a": ' * levels + "{}" + "}}" * levels


def test_C1_templates_of_clients(subject: Subject) -> None:
    template = "{{ ''.__class__.__mro__ }}"
    bodies: dict[str, Any] = {
        "/v1/chat/completions": CHAT,
        "/v1/responses": {"input": "x"},
        "/v1/messages": CHAT,
        "/v1/messages/count_tokens": {"messages": CHAT["messages"]},
        "/tokenize": {"messages": CHAT["messages"]},
    }
    for path, body in bodies.items():
        for field in ({"chat_template": template}, {"chat_template_kwargs": {"chat_template": template}}):
            answer = subject.post(path, {**body, **field})
            assert answer.status_code == 400, (path, field, answer.text)
            assert answer.json()["error"]["param"].startswith("chat_template"), (path, answer.text)


SCHEMAS: dict[str, Any] = {
    "an unknown type": {"type": "foo"},
    "half a pattern": {"type": "string", "pattern": "("},
    "a look behind": {"type": "string", "pattern": "(?<=x)*"},
    "a circle": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "a reference to nothing": {"$ref": "#/$defs/a"},
    "a reference elsewhere": {"$ref": "http://169.254.169.254/x"},
    "many properties": {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(20_000)}},
    "no object": 5,
    "nothing": False,
}


def test_C4_schemas(subject: Subject) -> None:
    for what, schema in SCHEMAS.items():
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        answer = subject.post("/v1/chat/completions", {**CHAT, "response_format": form})
        assert answer.status_code == 400, (what, answer.text)
        assert answer.json()["error"]["param"].startswith("response_format"), (what, answer.text)
    for levels in (100, 100_000):
        body = json.dumps({**CHAT, "guided_json": "SCHEMA"}).replace('"SCHEMA"', deep(levels))
        answer = subject.post("/v1/chat/completions", body.encode())
        assert answer.status_code == 400, answer.text
    huge = {"enum": [f"value {i}" * 10 for i in range(40_000)]}
    assert subject.post("/v1/chat/completions", {**CHAT, "guided_json": huge}).status_code == 400
    many = {"type": "array", "items": {"type": "integer"}, "minItems": 10**9}
    assert subject.post("/v1/chat/completions", {**CHAT, "guided_json": many}).status_code in (200, 400)
    for empty in ("", {}, []):
        answer = subject.post("/v1/completions", {"prompt": "x", "structured_outputs": {"grammar": empty}})
        assert answer.status_code == 400, answer.text


def test_C5_regexes(subject: Subject) -> None:
    """Answered in bounded time, by an answer or by 400; what takes longer than its process may is stopped."""
    for regex in ("(a+)+b", "(a|a)*{1,1000}", ".{0,100000}", "(.*a){30}", "((a{0,99}){0,99}){0,99}", "(", "(?=a)b"):
        answer = subject.post("/v1/completions", {"prompt": "x", "max_tokens": 4, "guided_regex": regex})
        assert answer.status_code in (200, 400), (regex, answer.text)
    bad = {"allOf": [{"type": "string", "pattern": f"a.{{{i}}}b"} for i in range(30)]}
    answers: list[Any] = []

    def ask() -> None:
        answers.append(subject.post("/v1/completions", {"prompt": "x", "guided_json": bad}))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in answers:
        error_of(answer, 400, "grammar_too_complex", "guided_json")


def test_C6_grammars(subject: Subject) -> None:
    nested = "(" * 60_000 + '"a"' + ")" * 60_000
    for grammar in (
        f"start: {nested}",
        f"root ::= {nested}",
        "root ::= nobody",
        "start: nobody",
        "root ::= ",
        "%%%",
        "\0",
    ):
        answer = subject.post("/v1/completions", {"prompt": "x", "max_tokens": 4, "guided_grammar": grammar})
        assert answer.status_code == 400, (grammar[:40], answer.text)
        assert answer.json()["error"]["param"] == "guided_grammar"
    left = subject.post("/v1/completions", {"prompt": "x", "max_tokens": 4, "guided_grammar": 'start: start "a" | "b"'})
    assert left.status_code in (200, 400)


def test_C8_with_and_without_a_grammar(subject: Subject) -> None:
    answers: dict[int, Any] = {}

    def ask(i: int) -> None:
        form = {"guided_regex": "[a-c]{12}"} if i % 2 else {}
        body = {"prompt": f"number {i % 7}", "max_tokens": 24, "temperature": 0, **form}
        answers[i] = subject.post("/v1/completions", body).json()["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 64
    alone = {}
    for i in range(7):
        body = {"prompt": f"number {i}", "max_tokens": 24, "temperature": 0}
        alone[i] = subject.post("/v1/completions", body).json()["choices"][0]["text"]
    for i, text in answers.items():
        if i % 2:
            assert len(text) == 12 and set(text) <= set("abc")
        else:
            assert text == alone[i % 7]


@pytest.mark.slow
def test_C5_a_minute_of_them(subject: Subject) -> None:
    """Refused for good, or for now, where the machine gave their process next to no time to be judged by."""
    refused = []
    for i in range(30):
        bad = {"allOf": [{"type": "string", "pattern": f"a.{{{i + j}}}b"} for j in range(30)]}
        answer = subject.post("/v1/completions", {"prompt": "x", "guided_json": bad})
        refused.append((answer.status_code, answer.json()["error"]["code"]))
    assert set(refused) <= {(400, "grammar_too_complex"), (503, "server_overloaded")}
    assert (400, "grammar_too_complex") in refused
