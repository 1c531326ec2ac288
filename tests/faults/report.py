"""Runs every case in its full form and writes docs/reliability.md: `scripts/test-faults`.

`--soak SECONDS` runs the random load of case H1 against one server for that long instead, and prints its memory.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import platform
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path

from tests.faults.cases import CASES, Case
from tests.faults.subject import GROWTH, Subject, memory

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
HEAD = """# What the server withstands

Each case is a fault, or a request or a client that means harm. `tests/faults` does it to a server of real processes
that runs under `python -O`; other cases belong to the tests of what they are about. Around every test of `tests/faults`
stands one post-condition (P0, `tests/faults/subject.py`): the same processes run; no request, KV block, task, thread,
descriptor or file is left; the front has gained at most 64 MiB; every line of the log is one line; four canary
streams that ran meanwhile have ended with the text that they have alone; and the next request succeeds. Errors have
the one shape, the field at fault, and nothing of ours in them.

This page is written by `scripts/test-faults`; with `--short` it leaves out the slow tests, as the tests of every change
do. `scripts/test-faults --soak 3600` puts a random load on one server for an hour. What needs a quiet machine is not
here: rates and times under ten times the load are those of `bench/overload.py`, not yet measured on one.

`scripts/test-fuzz` fuzzes what reads bytes of strangers (`tests/fuzz/targets.py`) with Atheris. Runs so far:

| Target | Time | Runs | Findings |
|---|---|---|---|
| detokenizer | 75 s | 265,131 | 0 |
| frames of the processes | 75 s | 2,644,501 | 0 |
| parsers of answers | 75 s | 70,058 | 0 |
| bodies of requests | 75 s | 1,848,320 | 0 |
| schemas | 75 s | 215,800 | 0 |
| headers of safetensors (changed seeds) | 60 s | 14,873 | 0 |

(2026-11-23, two cores that had other work too. The decoders of frames, bodies and headers are compiled libraries: the
fuzzer sees only our own code around them.)

"""


def own_tests() -> dict[str, list[str]]:
    """The tests of this folder by the case that their name begins with."""
    found: dict[str, list[str]] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                case = node.name.split("_")[1]
                found.setdefault(case, []).append(f"tests/faults/{path.name}::{node.name}")
    return found


def nodes_of(case: Case) -> list[str]:
    return own_tests().get(case.id, []) + list(case.elsewhere)


def run(nodes: list[str], short: bool) -> list[tuple[str, str]]:
    """(test, outcome) of all of them, in one run."""
    marks = "not gpu and not peer" + (" and not slow" if short else "")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", marks, f"--junitxml={file}", *nodes]
        subprocess.run(command, cwd=ROOT, check=False)
        results = []
        for each in ET.parse(file).iter("testcase"):
            path = (each.get("classname") or "").replace(".", "/") + ".py"
            tags = {child.tag for child in each}
            outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
            results.append((f"{path}::{each.get('name')}", outcome))
        return results


def belongs(result: str, node: str) -> bool:
    return result == node or result.startswith((f"{node}[", f"{node}::", f"{node}/"))


def verdict(case: Case, results: list[tuple[str, str]]) -> str:
    nodes = nodes_of(case)
    if not nodes:
        return "–"
    found = [outcome for result, outcome in results if any(belongs(result, node) for node in nodes)]
    if "failed" in found:
        return "**failed**"
    return f"passed ({found.count('passed')})" if "passed" in found else "not run"


def page(results: list[tuple[str, str]], short: bool) -> str:
    day = datetime.date.today().isoformat()
    form = "short form, `scripts/test-faults --short`" if short else "full form, `scripts/test-faults`"
    machine = f"Python {platform.python_version()}, {platform.machine()}, without a GPU"
    lines = [HEAD, f"Last run: {day}, {form}, {machine}.\n\n"]
    lines.append("| Case | What is done | Result (tests) | Tests, or why there are none |\n|---|---|---|---|\n")
    for case in CASES:
        where = dict.fromkeys(f"`{node.partition('::')[0]}`" for node in nodes_of(case))
        why = "; ".join(filter(None, [", ".join(where), case.note]))
        lines.append(f"| {case.id} | {case.text} | {verdict(case, results)} | {why} |\n")
    return "".join(lines)


def soak(seconds: float) -> int:
    from tests.faults.test_load import abort_at_random

    with tempfile.TemporaryDirectory() as folder:
        # A small cache: preemptions are common, and its memory, which is the system's until it is used, is used soon.
        subject = Subject(Path(folder), "--num-kv-blocks", "56")
        abort_at_random(subject, 500, 0)  # what grows at the beginning has grown
        before, begin, seed, total = subject.snapshot(), time.monotonic(), 1, 0
        least = most = 0
        while time.monotonic() - begin < seconds:
            with subject.canaries():
                total += sum(abort_at_random(subject, 500, seed))
            subject.check(before)
            engine, front = memory(before.pids[1]) / 2**20, memory(before.pids[0]) / 2**20
            passed = time.monotonic() - begin
            print(f"{passed:6.0f} s: {total} requests, front {front:.0f} MiB, engine {engine:.0f} MiB", flush=True)
            most = max(most, memory(before.pids[1]) + memory(before.pids[0]))
            least = least if least and passed > seconds / 10 else most  # until then it is warming up
            seed += 1
        preempted = re.search(r"^vllm:num_preemptions_total\S* (\d+)", subject.request("GET", "/metrics").text, re.M)
        more = (most - least) / 2**20
        print(f"{total} requests, {preempted and preempted[1]} preemptions, at most {more:.0f} MiB more after a tenth")
        return subject.close() or most - least > GROWTH


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--soak", type=float, metavar="SECONDS")
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    if options.soak is not None:
        return soak(options.soak)
    results = run(list(dict.fromkeys(node for case in CASES for node in nodes_of(case))), options.short)
    PAGE.write_text(page(results, options.short))
    failed = [name for name, outcome in results if outcome == "failed"]
    print(f"{len(results)} tests, {len(failed)} failed; written to {PAGE.relative_to(ROOT)}")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
