"""Runs every case in its full form and writes docs/reliability.md: `scripts/test-faults`.

With `--results FILE…` it writes the page of what `pytest --junitxml` has left there, of several runs if it need be.
`--soak SECONDS` runs the random load of case H1 against one server for that long instead, and prints its memory.
`--crowd SECONDS` keeps a thousand streams open at it for that long (case I8), and prints how many have ended well.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import datetime
import platform
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx

from tests.faults.cases import CASES, PROPERTIES, Case
from tests.faults.subject import AUTH, CANARY, GROWTH, LEFT, SECONDS, Subject, memory
from tests.faults.test_processes import stream
from tests.server.conftest import wait_for

STREAMS = 1000
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
FORMS = (
    "in full, `scripts/test-faults`",
    "the short form, `scripts/test-faults --short`",
    "in parts, beside other work of the machine",
)
HEAD = """# What the server withstands

Each case is a fault, or a request or a client that means harm. `tests/faults` does it to a server of real processes
that runs under `python -O`; other cases belong to the tests of what they are about. Around every test of `tests/faults`
stands one post-condition (P0, `tests/faults/subject.py`): the same processes run; no request, KV block, task, thread,
descriptor, file, mapped memory, followed grammar or reserved byte is left; the front has gained at most 64 MiB; every
line of the log is one line; eight canary streams that ran meanwhile have ended with the text that they have alone; and
the next request succeeds. How long a canary was silent depends on the machine: it is told, and bounded by a minute.
Errors have the one shape, the field at fault, and nothing of ours in them.

This page is written by `scripts/test-faults`; with `--short` it leaves out the slow tests, as the tests of every change
do. `scripts/test-faults --soak 3600` puts a random load on one server for an hour. What needs a quiet machine is not
here: times after a fault are those of `bench/faults.py`, rates under ten times the load those of `bench/overload.py`,
what safety costs that of `bench/safety.py` ([benchmarks](benchmarks.md#what-safety-costs)).

The longest soak so far: 3,603 s on 2026-11-23, 52,000 requests of which 30 % left, 1,631 preemptions, on a machine that
had other work for all of its cores. The front stayed at 61 MiB from the first minute on; front and engine together
gained at most 16 MiB after the first tenth.

`scripts/test-faults --crowd 600` keeps a thousand streams open for ten minutes: 11,977 on 2026-11-23, beside other
work; each ended with its text, and the front had 30 MiB more. Each process but the supervisor was also killed once
under 1,000 streams and 200 that waited (G1), with the same outcome as under 200.

`scripts/test-fuzz` fuzzes what reads bytes of strangers (`tests/fuzz/targets.py`) with Atheris. Runs so far:

| Target | Time | Runs | Findings |
|---|---|---|---|
| detokenizer | 600 s | 1,638,933 | 0 |
| frames of the processes | 600 s | 15,955,593 | 0 |
| parsers of answers | 600 s | 180,410 | 0 |
| bodies of requests | 600 s | 10,517,108 | 0 |
| schemas | 600 s | 784,662 | 1: a type that is an object ended the process that looks at it; mended |
| schemas, after that finding | 600 s | 1,868,224 | 0 |
| headers of safetensors (changed seeds) | 600 s | 172,306 | 0 |
| GGUF files | 600 s | 1,063,204 | 0 |

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


def all_nodes() -> list[str]:
    return list(dict.fromkeys(node for case in (*CASES, *PROPERTIES) for node in nodes_of(case)))


def nodes_of(case: Case) -> list[str]:
    return own_tests().get(case.id, []) + list(case.elsewhere)


class Result(NamedTuple):
    test: str
    outcome: str
    gap: float  # the longest silence of a canary meanwhile, in seconds


def run(nodes: list[str], short: bool) -> list[Result]:
    """All of them, in one run, without the product's asserts."""
    marks = "not gpu and not peer" + (" and not slow" if short else "")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.xml"
        command = [sys.executable, "-O", "-m", "pytest", "-q", "-m", marks, f"--junitxml={file}"]
        command += ["-o", "junit_family=xunit1", *nodes]  # the other form has no properties
        subprocess.run(command, cwd=ROOT, check=False)
        return read(file)


def read(file: Path) -> list[Result]:
    results = []
    for each in ET.parse(file).iter("testcase"):
        path = (each.get("classname") or "").replace(".", "/") + ".py"
        tags = {child.tag for child in each}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        gap = each.find("properties/property[@name='longest_gap']")
        results.append(
            Result(f"{path}::{each.get('name')}", outcome, 0.0 if gap is None else float(gap.get("value", 0)))
        )
    return results


def belongs(result: str, node: str) -> bool:
    return result == node or result.startswith((f"{node}[", f"{node}::", f"{node}/"))


def verdict(case: Case, results: list[Result]) -> str:
    nodes = nodes_of(case)
    if not nodes:
        return "–"
    found = [result.outcome for result in results if any(belongs(result.test, node) for node in nodes)]
    if "failed" in found:
        return "**failed**"
    return f"passed ({found.count('passed')})" if "passed" in found else "not run"


def table(head: str, cases: Sequence[Case], results: list[Result]) -> Iterator[str]:
    yield f"| {head} | Result (tests) | Tests, or why there are none |\n|---|---|---|---|\n"
    for case in cases:
        where = dict.fromkeys(f"`{node.partition('::')[0]}`" for node in nodes_of(case))
        why = "; ".join(filter(None, [", ".join(where), case.note]))
        yield f"| {case.id} | {case.text} | {verdict(case, results)} | {why} |\n"


def page(results: list[Result], form: str) -> str:
    day = datetime.date.today().isoformat()
    longest = max((result.gap for result in results), default=0.0)
    machine = f"Python {platform.python_version()}, {platform.machine()}, without a GPU"
    lines = [HEAD, f"Last run: {day}, {form}, {machine}: {len(results)} tests; the longest silence of a canary was "]
    lines.append(f"{longest:.1f} s.\n\n")
    lines += table("Case | What is done", CASES, results)
    lines.append("\n## What holds by design\n\n")
    lines += table("Property | What holds", PROPERTIES, results)
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


def crowd(seconds: float) -> int:
    """A thousand streams at any time. None may fail or differ from the others."""

    async def main(subject: Subject) -> int:
        end, total, last = time.monotonic() + seconds, 0, 0.0
        body = {**CANARY, "max_tokens": 100}
        limits = httpx.Limits(max_connections=None)

        async def client(http: httpx.AsyncClient) -> None:
            nonlocal total, last
            while time.monotonic() < end:
                text = await stream(http, body, [0])
                assert len(text) > 50 and subject.reference.startswith(text), text
                total += 1
                if time.monotonic() > last + 30:
                    last = time.monotonic()
                    front = memory(subject.snapshot().pids[0]) >> 20
                    print(f"{end - last:6.0f} s left: {total} streams, front {front} MiB", flush=True)

        async with httpx.AsyncClient(base_url=subject.url, headers=AUTH, limits=limits, timeout=SECONDS * 5) as http:
            await asyncio.gather(*(client(http) for _ in range(STREAMS)))
        return total

    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(Path(folder), "--max-num-seqs", str(STREAMS))
        before = subject.snapshot()
        total = asyncio.run(main(subject))
        left = memory(subject.snapshot().pids[0]) - before.memory
        wait_for(lambda: not [name for name in LEFT if subject.state()[name]], SECONDS)
        print(f"{total} streams in {seconds:.0f} s, {STREAMS} at a time; the front has {left >> 20} MiB more")
        return subject.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--soak", type=float, metavar="SECONDS")
    parser.add_argument("--crowd", type=float, metavar="SECONDS")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--results", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_args()
    if options.soak is not None:
        return soak(options.soak)
    if options.crowd is not None:
        return crowd(options.crowd)
    if options.results:
        results, form = [result for file in options.results for result in read(file)], FORMS[2]
        results = list({result.test: result for result in results}.values())  # of two runs of a test, the later one
    else:
        results, form = run(all_nodes(), options.short), FORMS[options.short]
    PAGE.write_text(page(results, form))
    failed = [result.test for result in results if result.outcome == "failed"]
    print(f"{len(results)} tests, {len(failed)} failed; written to {PAGE.relative_to(ROOT)}")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
