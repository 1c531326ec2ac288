"""What strangers write as grammars: refused with its path, killed when it is too much, never more than that."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.core import child
from octavo.core.child import Child
from octavo.core.errors import EngineUnavailable, RequestError
from octavo.core.structured import StructuredOutputs
from octavo.grammar.checker import COMPILE_SECONDS, Checker
from tests.builders import VOCAB_SIZE, save_tokenizer


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checker]:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    found = Checker(folder, VOCAB_SIZE)
    yield found
    found.close()


def refused(checker: Checker, asked: dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        checker.check(StructuredOutputs(**asked))
    assert len(str(caught.value)) < 1000
    return caught.value


def deep(levels: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "foo"}, "type"),
        ({"unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"properties": {"x": {"items": {"contains": {}}}}}, "properties.x.items.contains"),
        ({"$defs": {"d": {"not": {}}}, "$ref": "#/$defs/d"}, "$defs.d.not"),
        ({"anyOf": [{"type": "null"}, {"if": {}, "then": {}}]}, "anyOf[1].if"),
        ({"allOf": [{}, {"uniqueItems": True}]}, "allOf[1].uniqueItems"),
        ({"prefixItems": [{"type": "string", "pattern": "("}]}, "prefixItems[0].pattern"),
        ({"type": "string", "pattern": "(?<=x)*"}, "pattern"),
        ({"properties": {"f": {"type": "string", "format": "uri-template"}}}, "properties.f.format"),
        ({"properties": {"x": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}}, "properties.x.oneOf"),
        ({"properties": {"x": {"$ref": "#/$defs/none"}}}, "properties.x.$ref"),
        ({"$ref": "http://example.com/schema"}, "$ref"),
        ({"properties": []}, "properties"),
        ({"type": "object", "required": ["a"], "minProperties": 3}, "minProperties"),
        ({"items": 5}, "items"),
        (False, ""),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "$defs.a.$ref"),
        (deep(200), ".".join(["properties.a"] * 65)),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_schemas_that_cannot_be_followed(checker: Checker, schema: Any, path: str):
    error = refused(checker, {"json": schema, "param": "response_format.json_schema.schema"})
    assert error.param == f"response_format.json_schema.schema.{path}".rstrip(".")
    assert error.status == 400 and error.param in error.message


def test_what_asks_for_nothing_is_no_obstacle(checker: Checker):
    annotations = {"title": "t", "description": "d", "default": 1, "examples": [1], "$comment": "c", "made up": 1}
    checker.check(
        StructuredOutputs(
            json={
                **annotations,
                "type": "object",
                "properties": {"a": {"type": "integer", "format": "int32"}, "b": {"uniqueItems": False}},
                "unevaluatedProperties": True,
                "x-guidance": {"lenient": True},
            }
        )
    )


@pytest.mark.parametrize(
    "asked",
    [
        {"regex": "("},
        {"regex": "(?=a)b"},
        {"regex": r"\bword\b"},
        {"grammar": "start: nobody"},
        {"grammar": "start: " + "(" * 60000 + '"a"' + ")" * 60000},
        {"grammar": "root ::= "},
        {"regex": "(x{0})*"},
        {"json": "{"},
        {"json": "[" * 100_000},
        {"structural_tag": "5"},
        {"structural_tag": {"format": {"type": "nothing"}}},
        {"structural_tag": {"format": {"type": "sequence", "elements": [{"type": "any_text"}] * 2}}},
        {"structural_tag": {"structures": [{"begin": "<a>", "schema": {}}], "triggers": ["<b>"]}},
        {"structural_tag": {"structures": [{"begin": "<a>", "schema": {"not": {}}, "end": ""}], "triggers": ["<a"]}},
    ],
    ids=lambda asked: str(asked)[:40],
)
def test_others_that_cannot_be_followed(checker: Checker, asked: dict[str, Any]):
    (kind,) = asked
    error = refused(checker, asked)
    assert error.param is not None and error.param.startswith(f"structured_outputs.{kind}")


@pytest.mark.parametrize(
    "asked",
    [
        {"json": {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(20_000)}}},
        {"json": {"allOf": [{"type": "string", "pattern": f"a.{{{i}}}b"} for i in range(30)]}},
        {"json": {"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(9)]} for i in range(9)]}},
    ],
    ids=["many properties", "many states", "many alternatives"],
)
def test_what_is_too_much_is_stopped(checker: Checker, asked: dict[str, Any]):
    start = time.monotonic()
    assert refused(checker, asked).code == "grammar_too_complex"
    assert time.monotonic() - start < 120  # and not for ever
    assert refused(checker, asked).code == "grammar_too_complex"  # known now
    assert checker.check(StructuredOutputs(regex="[a-z]+"))  # and the checker is there again


@pytest.mark.parametrize(
    "asked",
    [
        {"regex": "(a+)+b"},
        {"regex": "(a|a)*{1,1000}"},
        {"regex": ".{0,100000}"},
        {"regex": "(.*a){30}"},
        {"json": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9}},
        {"json": {"type": "string", "minLength": 10**6}},
        {"grammar": 'start: start "a" | "b"'},
    ],
    ids=lambda asked: str(asked)[:40],
)
def test_what_is_a_trap_elsewhere(checker: Checker, asked: dict[str, Any]):
    """Accepted or refused, but at once."""
    start = time.monotonic()
    try:
        checker.check(StructuredOutputs(**asked))
    except RequestError as error:
        assert error.status == 400
    assert time.monotonic() - start < 30 * COMPILE_SECONDS


def test_a_process_that_is_killed_is_no_fault_of_its_grammar(checker: Checker, monkeypatch: pytest.MonkeyPatch):
    deaths, answers = [], Child.answers

    def dying(child: Child, *seconds: float) -> bool:
        if len(deaths) < limit:
            deaths.append(child._process.pid)
            child._process.kill()
            with contextlib.suppress(ConnectionResetError):
                while child.sock.recv(4096):  # where others take the machine's time, it may have answered already
                    pass
        return answers(child, *seconds)

    monkeypatch.setattr(Child, "answers", dying)
    limit = 1
    assert checker.check(StructuredOutputs(regex="killed[a-z]+"))
    limit = 3  # but one whose process dies again is taken for the cause
    assert refused(checker, {"regex": "deadly[a-z]+"}).code == "grammar_too_complex"
    assert len(set(deaths)) == 3


def test_a_process_that_has_no_time_is_no_fault_of_its_grammar(checker: Checker, monkeypatch: pytest.MonkeyPatch):
    checker.check(StructuredOutputs(regex="[a-c]+"))
    (worker,) = checker._workers.values()
    assert worker._child is not None
    os.kill(worker._child._process.pid, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(child, "BUSY_SECONDS", 0.3)
        assert refused(checker, {"regex": "frozen[a-z]+"}).code == "server_overloaded"
    assert checker.check(StructuredOutputs(regex="frozen[a-z]+"))


def test_what_was_too_much_is_tried_again_after_a_while(checker: Checker, monkeypatch: pytest.MonkeyPatch):
    asked = StructuredOutputs(regex="later[a-z]+")
    with monkeypatch.context() as patch:
        patch.setattr(Child, "answers", lambda *args: False)
        assert refused(checker, {"regex": asked.regex}).code == "grammar_too_complex"
    assert refused(checker, {"regex": asked.regex}).code == "grammar_too_complex"
    for key in checker._bad_until:
        checker._bad_until[key] = 0.0
    assert checker.check(asked) == checker.known(asked)


def test_answers_are_kept(checker: Checker, monkeypatch: pytest.MonkeyPatch):
    asked = StructuredOutputs(choice=["a", "b"])
    assert checker.known(asked) is None
    source = checker.check(asked)
    monkeypatch.setattr(checker, "_workers", {})
    assert checker.check(StructuredOutputs(choice=["a", "b"], param="guided_choice")) == source == checker.known(asked)
    assert checker.known(StructuredOutputs(choice=["a", "c"])) is None


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({}, "structured_outputs"),
        ({"regex": "a", "choice": ["b"]}, "structured_outputs"),
        ({"json_object": False}, "structured_outputs"),
        ({"regex": ""}, "structured_outputs.regex"),
        ({"regex": "a" * 70_000}, "structured_outputs.regex"),
        ({"regex": 5}, "structured_outputs.regex"),
        ({"grammar": "a\0"}, "structured_outputs.grammar"),
        ({"choice": []}, "structured_outputs.choice"),
        ({"choice": [""]}, "structured_outputs.choice"),
        ({"choice": ["\ud800"]}, "structured_outputs.choice"),
        ({"choice": ["a"] * 10_001}, "structured_outputs.choice"),
        ({"json": {"enum": ["x" * (1 << 20)]}}, "structured_outputs.json"),
        ({"json": {"a": object()}}, "structured_outputs.json"),
        ({"json": {}, "whitespace_pattern": ""}, "structured_outputs.whitespace_pattern"),
    ],
)
def test_shape_and_size(values: dict[str, Any], param: str):
    with pytest.raises(RequestError) as caught:
        StructuredOutputs(**values)
    assert caught.value.param == param


def test_a_tokenizer_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """It may have been deleted meanwhile. Clients learn nothing of our disk."""
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineUnavailable) as error:
        Checker(tmp_path, 100).check(StructuredOutputs(choice=["a"]))
    assert "tokenizer.json" not in str(error.value)
    assert "tokenizer.json cannot be read" in caplog.records[-1].__dict__["fields"]["reason"]
