"""`octavo run` and `octavo chat` on a scripted engine."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from octavo.cli import terminal
from octavo.core.config import EngineConfig
from octavo.core.errors import RequestError
from tests.server.conftest import own_log
from tests.server.fake_engine import FakeLLM


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with own_log():
        yield


def options(**values: Any) -> argparse.Namespace:
    fields = {"system": None, "max_tokens": None, "temperature": None, "top_p": None, "raw": False}
    return argparse.Namespace(**{**fields, **values})


class Engine:
    """Starts one FakeLLM and remembers it."""

    def __init__(self, **values: Any) -> None:
        self.llm = FakeLLM(**values)

    async def __call__(self, config: EngineConfig) -> FakeLLM:
        return self.llm


def test_run(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine(generation_config={"top_k": 5})
    assert terminal.run(EngineConfig(), "say:hi 👋", options(temperature=0, system="Be brief."), engine) == 0
    assert capsys.readouterr().out == "hi 👋\n"
    assert (engine.llm.seen[0].temperature, engine.llm.seen[0].top_k, engine.llm.ready) == (0, 5, False)


def test_run_raw(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.run(EngineConfig(), "say:one", options(raw=True), Engine())
    terminal.run(EngineConfig(), "say:two", options(), Engine(template=None))
    terminal.run(EngineConfig(), "count", options(max_tokens=4, raw=True), Engine())
    assert capsys.readouterr().out == "one\ntwo\n0 1 \n"


def test_run_refuses_what_is_too_long() -> None:
    engine = Engine(max_model_len=20)
    with pytest.raises(RequestError, match="context"):
        terminal.run(EngineConfig(), "x" * 100, options(), engine)
    assert not engine.llm.ready


def talk(monkeypatch: pytest.MonkeyPatch, said: str, **values: Any) -> Engine:
    engine = Engine(**values)
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))
    assert terminal.chat(EngineConfig(), options(), engine) == 0
    return engine


def test_chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    prompts: list[Any] = []
    generate = FakeLLM.generate

    def spy(self: FakeLLM, prompt: Any, *args: Any, **options: Any) -> Any:
        prompts.append(prompt)
        return generate(self, prompt, *args, **options)

    monkeypatch.setattr(FakeLLM, "generate", spy)
    engine = talk(monkeypatch, "say:one [bold]\n\nsay:two\n/what\n/reset\nsay:three\n/exit\nsay:four\n")
    out = capsys.readouterr().out
    assert "one [bold]" in out and "two" in out and "three" in out and "four" not in out
    assert "/reset forgets" in out and "A new conversation." in out
    assert prompts == [
        "<user>say:one [bold]\n<assistant>",
        "<user>say:one [bold]\n<assistant>one [bold]\n<user>say:two\n<assistant>",
        "<user>say:three\n<assistant>",
    ]
    assert not engine.llm.ready


def test_an_answer_cannot_move_the_cursor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    talk(monkeypatch, "say:a\x1b[2Jb\x07\n")
    assert "a[2Jb" in capsys.readouterr().out


def test_a_refused_turn_is_forgotten(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    engine = talk(monkeypatch, f"{'x' * 200}\nsay:ok\n", max_model_len=100)
    out = capsys.readouterr().out
    assert "context" in out and "ok" in out
    assert len(engine.llm.seen) == 1


def test_ctrl_c_stops_the_answer_and_not_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import signal
    import threading

    engine = Engine(delay=0.01)

    def interrupt() -> None:
        while not engine.llm.live:
            pass
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    monkeypatch.setattr(sys, "stdin", io.StringIO("count\nsay:after\n"))
    thread = threading.Thread(target=interrupt)
    # Whoever started the tests in the background may have had the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread.start()
        assert terminal.chat(EngineConfig(), options(), engine) == 0
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    out = capsys.readouterr().out
    assert out.index("stopped") < out.index("after")
    assert engine.llm.aborted == ["chat"]


def test_the_answer_is_shown_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Screen(io.StringIO):
        def write(self, text: str) -> int:
            shown.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stdout", Screen())
    terminal.run(EngineConfig(), "say:abc", options(), Engine())
    assert "".join(shown) == "abc\n" and len(shown) >= 4
