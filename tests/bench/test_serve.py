"""What a load test reads from the server's own counters, and flags that are refused before anything is sent."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from octavo.bench.client import Outcome, Target
from octavo.bench.datasets import Sample
from octavo.bench.serve import Server, draft_figures, probe_figures
from octavo.bench.shapes import write_shape
from octavo.bench.timeline import COLOURS, FAILED, WAITING, parse_thresholds
from octavo.bench.timeline import page as page_of
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
    several = Server("http://h", "openai-embeddings", target, ("m",)).encode(Sample("a", 2, 1, more=("b",)), "m")
    assert json.loads(several)["input"] == ["a", "b"]


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


def test_a_trace_and_its_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Requests leave when the trace says, and the pictures lie beside the result."""
    rows = [{"t": 10 * i, "input_length": 4 + i, "output_length": 2, "hash_ids": [1]} for i in range(4)]
    (tmp_path / "trace.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with ThreadingHTTPServer(("127.0.0.1", 0), Counting) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        flags = ["bench", "serve", "--port", str(server.server_port), "--model", "m<b>", "--skip-tokenizer-init"]
        flags += [
            "--dataset-name",
            "timed_trace",
            "--dataset-path",
            str(tmp_path / "trace.jsonl"),
            "--num-prompts",
            "4",
        ]
        flags += ["--self-timed", "--timed-trace-label-timestamp", "t", "--timed-trace-sec-multiplier", "0.03"]
        flags += ["--plot-timeline", "--timeline-itl-thresholds", "2", "5", "--no-stream"]
        flags += ["--plot-dataset-stats"] if find_spec("matplotlib") else []
        assert main([*flags, "--save-result", "--save-detailed", "--result-dir", str(tmp_path)]) == 0
        server.shutdown()
    (saved,) = tmp_path.glob("*.json")
    result = json.loads(saved.read_text())
    assert result["self_timed"] is True and result["completed"] == 4
    assert result["duration"] >= 0.89  # the last is due after 0.9 s
    page = (tmp_path / f"{saved.stem}.timeline.html").read_text()
    assert (
        page.count("<g>") == 4 and "m&lt;b&gt;" in page and "gaps below 2 ms" in page and "16 tokens in, 2 out" in page
    )
    if find_spec("matplotlib"):
        assert (tmp_path / f"{saved.stem}.dataset_stats.png").read_bytes()[:4] == b"\x89PNG"
    assert "Timeline: " in capsys.readouterr().out


def test_timelines() -> None:
    result = {
        "start_times": [5.0, 5.0],
        "latencies": [0.2, 0.1],
        "ttfts": [0.1, 0.0],
        "itls": [[0.01, 0.01, 0.03, 0.05], []],
        "input_lens": [3, 3],
        "output_lens": [5, 0],
        "errors": ["", "503: full"],
    }
    text = page_of(result, (25.0, 50.0))
    found = re.findall(r'x="([\d.]+)" y="\d+" width="([\d.]+)" height="12" fill="(#\w+)"', text)
    widths = [(float(width), colour) for _, width, colour in found]
    assert widths == [(600, WAITING), (120, COLOURS[0]), (180, COLOURS[1]), (300, COLOURS[2]), (600, FAILED)]
    assert "request 1: 503: full" in text and "longest gap 50.0 ms" in text
    assert parse_thresholds(["25,50"]) == parse_thresholds(["25", "50"]) == (25.0, 50.0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--self-timed"], "self-timed: only --dataset-name timed_trace says"),
        (
            ["--self-timed", "--dataset-name", "timed_trace", "--request-rate", "2"],
            "self-timed: the trace sets the rate",
        ),
        (["--random-batch-size", "2"], "random-batch-size is for random prompts of --backend openai-embeddings"),
        (["--timeline-itl-thresholds", "50,25"], "timeline-itl-thresholds: '50,25' must be two rising"),
        (["--dataset-name", "timed_trace", "--model", "m"], "dataset-path: timed_trace needs a file"),
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


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--use-beam-search"], "requests are streams, and beam search cannot be"),
        (["--dataset-name", "hf"], "data sets of the hub are not read here"),
        (["--dataset-name", "random-mm"], "prompts are texts and token ids only so far"),
        (["--dataset-name", "nothing"], "choose from random, sharegpt"),
        (["--backend", "openai-responses"], "completions, chats and embeddings are measured here"),
        (["--hf-split", "train"], "data sets of the hub"),
        (["--plot-timelines"], "did you mean --plot-timeline?"),
    ],
)
def test_flags_of_what_is_not_here(flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", "serve", *flags])
    assert end.value.code == 2 and reason in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sweep", "forward", "mm-processor"])
def test_benchmarks_that_are_not_here(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", name, "--anything", "x"]) == 1
    assert capsys.readouterr().err.startswith(f"octavo: octavo bench {name}: ")


def test_a_server_that_never_becomes_ready(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--skip-tokenizer-init", "--model", "m", "--port", "1", "--ready-check-timeout-sec", "0.1"]
    assert main(["bench", "serve", *flags, "--num-prompts", "1"]) == 1
    assert "http://127.0.0.1:1 did not answer within 0.1 seconds: cannot connect" in capsys.readouterr().err


def test_a_load_test_needs_no_torch() -> None:
    code = "import sys, octavo.bench.serve; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
