"""The form of an answer over HTTP: every way of asking for one, and real answers that have it."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest

from octavo.core.structured import StructuredOutputs
from tests.builders import make_model
from tests.server.conftest import Running, wait_for
from tests.server.test_end_to_end import MESSAGES, Served, children, command, is_running
from tests.server.test_requests import error_of

SCHEMA = {"type": "object", "properties": {"x": {"type": "integer", "maximum": 99}}, "required": ["x"]}
TAG = {"type": "triggered_tags", "triggers": ["<a"], "tags": [{"begin": "<a>", "content": {"type": "any_text"}}]}
OLD_TAG = {"structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}], "triggers": ["<a"]}

SPELLINGS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"response_format": {"type": "json_object"}}, {"json_object": True}, "response_format"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}},
        {"json": SCHEMA},
        "response_format.json_schema.schema",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        {"json_object": True},
        "response_format.json_schema",
    ),
    ({"response_format": {"type": "structural_tag", **OLD_TAG}}, {"structural_tag": OLD_TAG}, "response_format"),
    (
        {"response_format": {"type": "structural_tag", "format": TAG}},
        {"structural_tag": {"format": TAG}},
        "response_format",
    ),
    ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}, "structured_outputs.regex"),
    (
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
        {"json": SCHEMA, "disable_any_whitespace": True},
        "structured_outputs.json",
    ),
    ({"guided_json": json.dumps(SCHEMA)}, {"json": json.dumps(SCHEMA)}, "guided_json"),
    (
        {"guided_json": SCHEMA, "guided_whitespace_pattern": " ?"},
        {"json": SCHEMA, "whitespace_pattern": " ?"},
        "guided_json",
    ),
    ({"guided_regex": "a+"}, {"regex": "a+"}, "guided_regex"),
    ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}, "guided_choice"),
    ({"guided_grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}, "guided_grammar"),
    ({"json_schema": SCHEMA}, {"json": SCHEMA}, "json_schema"),
    ({"regex": "a"}, {"regex": "a"}, "regex"),
    ({"ebnf": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}, "ebnf"),
    ({"grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}, "grammar"),
]


@pytest.mark.parametrize(("body", "asked", "param"), SPELLINGS, ids=lambda value: str(value)[:40])
def test_spellings(server: Running, body: dict[str, Any], asked: dict[str, Any], param: str) -> None:
    assert server.llm is not None
    for answer in (server.chat(**body), server.complete(**body)):
        assert answer.status_code == 200, answer.text
        assert "x-octavo-ignored" not in answer.headers
        assert server.llm.seen[-1].structured_outputs == StructuredOutputs(**asked, param=param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": 5}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs"),
        ({"guided_regex": "a" * 70_000}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": "a"}, "guided_choice"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "response_format"),
        ({"guided_regex": "a", "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"guided_regex": "a", "use_beam_search": True}, "guided_regex"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_refused(server: Running, body: dict[str, Any], param: str) -> None:
    error_of(server.chat(**body), 400, "invalid_value", param)
    error_of(server.complete(**body), 400, "invalid_value", param)


class Item(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=8)
    kind: Literal["book", "leaf"]
    pages: list[int] = pydantic.Field(max_length=2)


class Shelf(pydantic.BaseModel):
    first: Item
    second: Item | None
    full: bool


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    running = Served(make_model(tmp_path_factory.mktemp("model")))
    yield running
    running.process.send_signal(signal.SIGTERM)
    try:
        assert running.process.wait(20) == 0
    finally:
        running.process.kill()
        running.process.wait()


def test_a_pydantic_model(served: Served) -> None:
    options: Any = {
        "model": served.model,
        "messages": MESSAGES,
        "max_tokens": 440,
        "seed": 5,
        "logit_bias": {"2": -100},
    }
    parsed = 0
    for seed in range(3):
        choice = None
        try:
            answer = served.client.chat.completions.parse(**{**options, "seed": seed}, response_format=Shelf)
            (choice,) = answer.choices
        except openai.LengthFinishReasonError:  # integers have no end
            continue
        assert choice.finish_reason == "stop" and isinstance(choice.message.parsed, Shelf)
        parsed += 1
    assert parsed


def test_the_stream_is_the_answer(served: Served) -> None:
    create = served.client.chat.completions.create
    schema = {"type": "object", "properties": {"x": {"enum": ["a", "b"]}, "y": {"type": "string", "maxLength": 9}}}
    schema |= {"required": ["x", "y"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "xy", "schema": schema, "strict": True}}
    options: Any = {"model": served.model, "messages": MESSAGES, "max_tokens": 200, "seed": 1, "response_format": form}
    whole = create(**options).choices[0]
    pieces = [chunk.choices[0] for chunk in create(**options, stream=True)]
    text = "".join(piece.delta.content or "" for piece in pieces)
    assert text == whole.message.content and (pieces[-1].finish_reason, whole.finish_reason) == ("stop", "stop")
    assert set(json.loads(text)) == {"x", "y"}


def test_completions_with_the_old_names(served: Served) -> None:
    complete = served.client.completions.create
    answer = complete(
        model=served.model,
        prompt=["The", "A"],
        max_tokens=30,
        n=4,
        temperature=2.0,
        extra_body={"guided_regex": "[a-c]{3}[0-9]"},
    )
    assert len(answer.choices) == 8 and all(re.fullmatch("[a-c]{3}[0-9]", c.text) for c in answer.choices)
    assert len({choice.text for choice in answer.choices}) > 1
    chosen = complete(model=served.model, prompt="The", extra_body={"guided_choice": ["yes", "no"]})
    assert chosen.choices[0].text in ("yes", "no") and chosen.choices[0].finish_reason == "stop"


def test_the_path_of_what_is_not_supported(served: Served) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "object", "unevaluatedProperties": False}}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            served.client.chat.completions.create(
                model=served.model, messages=MESSAGES, response_format=form, stream=stream
            )
        assert caught.value.param == "response_format.json_schema.schema.properties.x.unevaluatedProperties"
        assert caught.value.code == "invalid_value"


def test_a_hostile_grammar_harms_nobody(served: Served) -> None:
    """It is given up after seconds, while others are answered."""
    bad = {"allOf": [{"type": "string", "pattern": f"a.{{{i}}}b"} for i in range(30)]}
    codes: list[str | None] = []

    def attack() -> None:
        try:
            served.client.completions.create(model=served.model, prompt="x", extra_body={"guided_json": bad})
        except openai.BadRequestError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=attack) for _ in range(3)]
    for thread in threads:
        thread.start()
    others = 0
    while any(thread.is_alive() for thread in threads):
        answer: Any = served.client.completions.create(model=served.model, prompt="The quick", max_tokens=4)
        assert answer.choices[0].finish_reason in ("stop", "length")
        others += 1
    assert codes == ["grammar_too_complex"] * 3 and others > 3
    chosen = served.client.completions.create(model=served.model, prompt="x", extra_body={"guided_choice": ["a"]})
    assert chosen.choices[0].text == "a"


def test_what_follows_grammars_is_there_before_the_first_one(tmp_path: Path) -> None:
    """And a plain request does not wait for it."""
    fresh = Served(make_model(tmp_path))

    def has_one(parent: int) -> bool:
        return sum(b"octavo.grammar.process" in command(pid) for pid in children(parent)) == 1

    try:
        wait_for(lambda: has_one(fresh.engine()) and has_one(fresh.front()), seconds=60)
    finally:
        fresh.process.send_signal(signal.SIGTERM)
        assert fresh.process.wait(30) == 0


def test_the_matcher_may_be_killed(served: Served) -> None:
    """Answers that it follows fail, others go on, and it is started again."""
    complete = served.client.completions.create
    complete(model=served.model, prompt="x", extra_body={"guided_choice": ["a"]})
    engine = served.engine()
    (matcher,) = children(engine)
    streams: dict[str, Any] = {
        "grammar": complete(
            model=served.model, prompt="x", max_tokens=400, stream=True, extra_body={"guided_regex": "[a-z]{400}"}
        ),
        "plain": complete(model=served.model, prompt="x", max_tokens=400, stream=True, extra_body={"ignore_eos": True}),
    }
    for stream in streams.values():
        next(stream)
    os.kill(matcher, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="grammars was lost"):
        list(streams["grammar"])
    assert list(streams["plain"])[-1].choices[0].finish_reason == "length"
    chosen = complete(model=served.model, prompt="x", extra_body={"guided_choice": ["a"]})
    assert chosen.choices[0].text == "a" and is_running(engine)
