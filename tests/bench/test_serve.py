"""What a load test reads from the server's own counters, and flags that are refused before anything is sent."""

from __future__ import annotations

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from octavo.bench.client import Outcome, Target
from octavo.bench.datasets import Sample
from octavo.bench.serve import Server, draft_figures, probe_figures
from octavo.bench.shapes import write_shape
from octavo.cli.main import main

PAGE = """# HELP vllm:spec_decode_num_drafts_total x
vllm:spec_decode_num_drafts_total{{engine="0",model_name="m"}} {drafts}
vllm:spec_decode_num_draft_tokens_total{{engine="0"}} {tokens}
vllm:spec_decode_num_accepted_tokens_total{{engine="0"}} {taken}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="0"}} {first}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="1"}} {second}
vllm:iteration_tokens_total_count{{engine="0"}} {steps}
"""


def page(drafts: float, tokens: float, taken: float, first: float, second: float, steps: float = 0.0) -> str:
    values = {"drafts": drafts, "tokens": tokens, "taken": taken, "first": first, "second": second, "steps": steps}
    return PAGE.format(**values)


def test_drafts() -> None:
    found, lines = draft_figures(page(10, 20, 5, 4, 1), page(50, 100, 55, 34, 21))
    assert found == {
        "spec_decode_acceptance_rate": pytest.approx(62.5),
        "spec_decode_acceptance_length": 2.25,
        "spec_decode_num_drafts": 40,
        "spec_decode_draft_tokens": 80,
        "spec_decode_accepted_tokens": 50,
        "spec_decode_per_position_acceptance_rates": [0.75, 0.5],
    }
    assert lines == [
        "---------------Speculative Decoding---------------",
        "Acceptance rate (%):                     62.50     ",
        "Acceptance length:                       2.25      ",
        "Drafts:                                  40        ",
        "Draft tokens:                            80        ",
        "Accepted tokens:                         50        ",
        "Per-position acceptance (%):",
        "  Position 0:                            75.00     ",
        "  Position 1:                            50.00     ",
    ]
    assert draft_figures("", "") == draft_figures(page(1, 1, 1, 1, 0), page(1, 1, 1, 1, 0)) == ({}, [])


def test_probes() -> None:
    found, lines = probe_figures([Outcome(latency=0.1), Outcome(latency=0.3), Outcome(error="late")])
    assert (found["probe_completed"], found["probe_failed"]) == (2, 1)
    assert found["probe_median_e2el_ms"] == pytest.approx(200) and found["probe_max_e2el_ms"] == pytest.approx(300)
    assert lines[:3] == [
        "------------------Probe Requests------------------",
        "Probe requests completed:                2         ",
        "Probe requests failed:                   1         ",
    ]
    assert probe_figures([Outcome(error="late")]) == ({}, [])


def test_bodies() -> None:
    target = Target("h", 1, "/")
    chat = Server("http://h", "openai-chat", target, ("m",), {"temperature": 0.5})
    assert json.loads(chat.encode(Sample("Hi", 1, 7), "m")) == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "Hi"}],
        "max_completion_tokens": 7,
        "temperature": 0.5,
    }
    text = json.loads(Server("http://h", "vllm", target, ("m",)).encode(Sample([1, 2], 2, 7), "lora"))
    assert (text["model"], text["prompt"], text["max_tokens"]) == ("lora", [1, 2], 7)
    read = json.loads(Server("http://h", "openai-embeddings", target, ("m",)).encode(Sample("Hi", 1, 7), "m"))
    assert read == {"model": "m", "input": "Hi", "encoding_format": "base64"}


class Counting(BaseHTTPRequestHandler):
    """Answers with two tokens, and counts a step for each."""

    steps = 0

    def do_GET(self) -> None:
        self.reply(page(0, 0, 0, 0, 0, self.steps).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        Counting.steps += 2
        events: list[Any] = [{"choices": [{"text": "x"}]}] * 2
        details = {"prompt_tokens": 16, "completion_tokens": 2, "prompt_tokens_details": None}
        events.append({"choices": [], "usage": details})
        self.reply(b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events))

    def reply(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None: ...


def test_use_of_the_servers_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = write_shape("llama-3.2-1b", tmp_path / "llama")
    with ThreadingHTTPServer(("127.0.0.1", 0), Counting) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        flags = ["bench", "serve", "--port", str(server.server_port), "--model", str(shape), "--skip-tokenizer-init"]
        flags += ["--num-prompts", "3", "--input-len", "16", "--output-len", "2", "--device-name", "H200"]
        flags += [
            "--max-concurrency",
            "1",
            "--probe-request-rate",
            "100",
            "--request-rate",
            "200",
            "--burstiness",
            "inf",
        ]
        assert main([*flags, "--save-result", "--result-dir", str(tmp_path), "--result-filename", "r.json"]) == 0
        server.shutdown()
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["device"], result["burstiness"]) == ("H200", "inf")
    assert result["bytes_moved"] == pytest.approx(result["steps"] * 2.47e9, rel=0.01)  # 1.24G parameters a step
    assert result["bandwidth_share"] == pytest.approx(result["bytes_moved"] / result["duration"] / 4.3e12, rel=0.01)
    assert result["probe_completed"] >= 1 and "ttfts" not in result and len(result["latencies"]) == 3
    assert "Bandwidth use: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--request-rate", "0"], "request-rate must be above 0, got 0"),
        (["--max-concurrency", "0"], "max-concurrency must be at least 1, got 0"),
        (["--ramp-up-strategy", "linear"], "ramp-up-strategy needs --ramp-up-start-rps and --ramp-up-end-rps"),
        (["--ramp-up-strategy", "linear", "--request-rate", "1"], "ramp-up-strategy sets the rate: leave out "),
        (["--goodput", "speed:1"], "goodput: 'speed:1' must name one of ttft, tpot, e2el and a time"),
        (["--header", "x"], "header: 'x' must be KEY=VALUE"),
        (["--base-url", "host"], "'host/v1/completions' is not a URL"),
        (["--port", "1"], "http://127.0.0.1:1/v1/models names no model"),
        (["--model", "m", "--dataset-path", "x"], "dataset-path: random prompts come from no file"),
        (["--model", "m", "--backend", "openai-chat"], "skip-tokenizer-init: a chat needs texts"),
        (
            ["--model", "m", "--dataset-name", "sharegpt", "--dataset-path", "x"],
            "skip-tokenizer-init: the lengths of a",
        ),
        (["--model", "m", "--num-prompts", "0"], "there are no prompts"),
    ],
)
def test_refused_flags(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--skip-tokenizer-init", *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"octavo: {message}") and error.count("\n") == 1


def test_a_server_that_never_becomes_ready(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--skip-tokenizer-init", "--model", "m", "--port", "1", "--ready-check-timeout-sec", "0.1"]
    assert main(["bench", "serve", *flags, "--num-prompts", "1"]) == 1
    assert "http://127.0.0.1:1 did not answer within 0.1 seconds: cannot connect" in capsys.readouterr().err


def test_a_load_test_needs_no_torch() -> None:
    code = "import sys, octavo.bench.serve; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
