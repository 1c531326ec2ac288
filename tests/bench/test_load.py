"""`octavo bench serve` against a scripted server that fails, and against ours with the demo model."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from octavo.cli.main import main
from octavo.core.config import EngineConfig
from octavo.server.config import ServerConfig
from tests.server.conftest import Running, wait_for
from tests.server.fake_pooler import FakePooler

DETAILED = ["--save-result", "--save-detailed", "--percentile-metrics", "ttft,tpot,itl,e2el"]
LOAD = ["--skip-tokenizer-init", "--vocab-size", "100", "--input-len", "8", "--disable-tqdm"]


class Scripted(BaseHTTPRequestHandler):
    """Of four requests one is refused, one's stream breaks off, and two are answered."""

    numbers: Iterator[int]
    bodies: list[Any]

    def do_GET(self) -> None:
        self.answer(200, {"data": [{"id": "scripted", "root": "scripted"}]} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(body)
        number = next(self.numbers) % 4
        if number == 1:
            self.answer(503, {"error": {"message": "too many requests"}})
            return
        self.send_response(200)
        self.send_header("Content-Length", "100000")  # which a stream that breaks off does not reach
        self.end_headers()
        events: list[Any] = [{"choices": [{"text": "x"}]} for _ in range(3)]
        if number == 2:
            events = [events[0], {"error": {"message": "the engine died"}}]
        else:
            events.append({"choices": [], "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": 3}})
        text = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"
        self.wfile.write(text + b":" * (100000 - len(text)))

    def answer(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def scripted() -> Iterator[ThreadingHTTPServer]:
    Scripted.numbers, Scripted.bodies = itertools.count(), []
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(5)


def test_failures_are_counted_and_shown(
    scripted: ThreadingHTTPServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["bench", "serve", "--port", str(scripted.server_port), *LOAD, *DETAILED, "--num-prompts", "8"]
    flags += ["--output-len", "3", "--max-concurrency", "1", "--result-dir", str(tmp_path), "--metadata", "who=test"]
    flags += ["--result-filename", "r.json", "--extra-body", '{"user": "me"}', "--top-k", "5", "--seed", "3"]
    assert main(flags) == 0
    said = capsys.readouterr().out
    assert "Successful requests:                     4         \n" in said
    assert "Failed requests:                         4         \n" in said
    assert "Error 0: 503: " in said and "too many requests" in said
    assert 'Error 1: {"message":"the engine died"}' in said
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["completed"], result["failed"], result["total_output_tokens"]) == (4, 4, 12)
    assert result["total_input_tokens"] == 32
    assert [bool(error) for error in result["errors"]] == [False, True, True, False] * 2
    assert (result["model_id"], result["who"], result["tokenizer_id"]) == ("scripted", "test", None)
    assert (result["request_rate"], result["burstiness"], result["max_concurrency"]) == ("inf", 1.0, 1)
    assert {"date", "endpoint_type", "backend", "label", "num_prompts"} <= set(result)
    for body in Scripted.bodies:
        assert body["ignore_eos"] is True and body["user"] == "me" and body["top_k"] == 5 and body["max_tokens"] == 3
        assert len(body["prompt"]) == 8 and all(0 <= token < 100 for token in body["prompt"])
    assert len({tuple(body["prompt"]) for body in Scripted.bodies}) == 8


def test_several_rates_make_a_figure(scripted: ThreadingHTTPServer, tmp_path: Path) -> None:
    picture = tmp_path / "load.png"
    flags = ["bench", "serve", "--port", str(scripted.server_port), *LOAD, "--num-prompts", "4", "--request-rate"]
    assert main([*flags, "100", "inf", "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG") and len(Scripted.bodies) == 8


def test_a_figure_that_cannot_be_drawn_is_said_at_once(
    scripted: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "serve", "--port", str(scripted.server_port), *LOAD, "--plot", "x.png"]) == 1
    assert capsys.readouterr().err == "octavo: --plot needs matplotlib: pip install 'octavo[bench]'\n"
    assert not Scripted.bodies


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--port", "1", "--model", "m", *LOAD, "--num-prompts", "2"]) == 1
    assert "cannot connect" in capsys.readouterr().out


def test_a_command_has_its_own_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "serve", "--request-rates", "1"])
    assert "there is no flag --request-rates; did you mean --request-rate?" in capsys.readouterr().err


@pytest.fixture
def octavo_server(tmp_path: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "octavo.cli.main", "serve", "--port", "0", "--device", "cpu"]
    log = tmp_path / "log"
    environment = {name: value for name, value in os.environ.items() if name != "OCTAVO_API_KEY"}
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env=environment)
    try:
        wait_for(lambda: "curl" in log.read_text() or process.poll() is not None, seconds=60)
        url = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        assert url is not None and process.poll() is None, log.read_text()
        yield url[0]
    finally:
        process.terminate()
        process.wait(20)


def test_our_server(octavo_server: str, tmp_path: Path) -> None:
    flags = ["bench", "serve", "--base-url", octavo_server, *DETAILED, "--result-dir", str(tmp_path), "--disable-tqdm"]
    flags += ["--num-prompts", "6", "--input-len", "16", "--output-len", "5", "--ready-check-timeout-sec", "20"]
    ids = ["--skip-tokenizer-init", "--vocab-size", "2000", "--result-filename", "ids.json"]
    assert main([*flags, *ids, "--num-warmups", "2", "--request-rate", "50"]) == 0
    result = json.loads((tmp_path / "ids.json").read_text())
    assert (result["completed"], result["failed"]) == (6, 0)
    assert result["input_lens"] == [16] * 6 and result["output_lens"] == [5] * 6
    assert all(first > 0 for first in result["ttfts"])
    assert result["latencies"] == pytest.approx(
        [first + sum(gaps) for first, gaps in zip(result["ttfts"], result["itls"], strict=True)]
    )
    chat = ["--backend", "openai-chat", "--result-filename", "chat.json"]
    assert main([*flags, *chat]) == 0
    result = json.loads((tmp_path / "chat.json").read_text())
    assert (result["completed"], result["total_output_tokens"]) == (6, 30)
    assert all(length > 16 for length in result["input_lens"])  # the template's tokens are counted


def test_embeddings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llm = FakePooler(max_model_len=8)
    server = Running(llm, ServerConfig(port=0, log_level="error"), EngineConfig())
    server.start()
    try:
        result = tmp_path / "r.json"
        flags = ["bench", "serve", "--backend", "openai-embeddings", "--base-url", server.url, "--num-prompts", "9"]
        flags += [*LOAD, "--save-result", "--result-filename", str(result)]
        assert main(flags) == 0
        found = json.loads(result.read_text())
        assert (found["completed"], found["failed"], found["total_input_tokens"]) == (9, 0, 72)
        assert found["total_output_tokens"] == 0 and found["mean_e2el_ms"] > 0 and "mean_ttft_ms" not in found
        assert all(len(prompt) == 8 for prompt, _ in llm.asked)
        report = capsys.readouterr().out
        assert "Mean E2EL (ms):" in report and "generated" not in report and "Output token" not in report
        assert main([*flags, "--input-len", "9", "--ready-check-timeout-sec", "0"]) == 1
        assert "context_length_exceeded" in capsys.readouterr().out
    finally:
        server.stop()
