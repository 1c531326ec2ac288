"""lm-eval against a running server, where it is installed (`pip install "lm_eval[api]"`): too heavy for every run.

Its two kinds of clients, a task of each kind of request, and scores that must be those of the offline engine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from tests.builders import make_model
from tests.server.test_end_to_end import Served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed"),
]
ROWS = [
    {"question": "The quick brown", "choices": [" fox", " dog", " cat jumps"], "answer": 0},
    {"question": "pack my box with", "choices": [" five", " dozen jugs", " x"], "answer": 1},
    {"question": "how vexingly quick", "choices": [" daft", " zebras jump"], "answer": 1},
]
CHOICE = """
task: octavo_choice
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc}]
"""
GENERATE = """
task: octavo_generate
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    running = Served(make_model(tmp_path_factory.mktemp("model")))
    yield running
    running.process.send_signal(signal.SIGTERM)
    running.process.wait(20)


def evaluate(served: Served, folder: Path, model: str, task: str, *flags: str) -> list[dict[str, Any]]:
    """The samples that `lm_eval` logs."""
    (folder / "rows.json").write_text("\n".join(map(json.dumps, ROWS)))
    tasks = folder / "tasks"
    tasks.mkdir()
    for name, text in (("choice", CHOICE), ("generate", GENERATE)):
        (tasks / f"{name}.yaml").write_text(text.replace("ROWS", str(folder / "rows.json")))
    path = "chat/completions" if "chat" in model else "completions"
    arguments = f"model={served.model},base_url={served.url}/v1/{path},tokenizer={served.folder},num_concurrent=2"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", arguments, "--tasks", task]
    command += ["--include_path", str(tasks), "--output_path", str(folder / "out"), "--log_samples", *flags]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "OPENAI_API_KEY": "x"}
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = (folder / "out").rglob("samples_*.jsonl")
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    return sorted(found, key=lambda sample: sample["doc_id"])


@pytest.fixture(scope="module")
def llm(served: Served) -> LLM:
    return LLM(str(served.folder), device="cpu", dtype="float32", num_kv_blocks=64)


@pytest.mark.parametrize("batch", ["1", "4"])
def test_loglikelihoods(served: Served, llm: LLM, tmp_path: Path, batch: str) -> None:
    samples = evaluate(served, tmp_path, "local-completions", "octavo_choice", "--batch_size", batch)
    assert len(samples) == len(ROWS)
    encode = llm.get_tokenizer().encode
    for row, sample in zip(ROWS, samples, strict=True):
        for choice, (found, greedy) in zip(row["choices"], sample["filtered_resps"], strict=True):
            context = encode(row["question"], add_special_tokens=False)
            ids = encode(row["question"] + choice, add_special_tokens=False)
            params = SamplingParams(max_tokens=1, prompt_logprobs=1)
            (answer,) = llm.generate([ids], params)
            rows = answer.prompt_logprobs[len(context) :]
            chosen = [row[token] for row, token in zip(rows, ids[len(context) :], strict=True)]
            assert float(found) == pytest.approx(sum(each.logprob for each in chosen), abs=1e-3)
            assert str(greedy) == str(all(each.rank == 1 for each in chosen))


@pytest.mark.parametrize("model", ["local-completions", "local-chat-completions"])
def test_generations(served: Served, llm: LLM, tmp_path: Path, model: str) -> None:
    flags = ("--apply_chat_template",) if "chat" in model else ()
    samples = evaluate(served, tmp_path, model, "octavo_generate", *flags)
    params = SamplingParams(max_tokens=8, temperature=0, stop=["\n\n"])
    for row, sample in zip(ROWS, samples, strict=True):
        if flags:
            (expected,) = llm.chat([{"role": "user", "content": row["question"]}], params)
        else:
            (expected,) = llm.generate([row["question"]], params)
        assert sample["resps"][0][0] == expected.outputs[0].text
