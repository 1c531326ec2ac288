"""A report of each crash that a person can act on: a folder with report.json, and the same to read as report.md.

It names the cause, what the process was at, whose requests were in its last step (by id and fingerprint: never a
prompt, an answer or a key), its last log lines and stacks, and what may help. The last `KEPT` are kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import platform
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from octavo.core import log
from octavo.version import VERSION

KEPT = 20
SECRETS = ("api_key", "hf_token")  # fields of configurations that no report shows
OUT_OF_MEMORY = ("out of memory", "OutOfMemoryError", "MemoryError", "CUDA error: out of memory")
DEVICE_FAULTS = ("CUDA error", "device-side assert", "illegal memory access", "Xid")


def report_folder(asked: str | None = None) -> Path:
    if asked is not None:
        return Path(asked)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "octavo" / "crashes"


def cause_of(status: int | None, message: str = "") -> str:
    """In words, from a process's exit status (negative: the signal) and what it said."""
    if status is not None and status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"killed by {name}" + (f": {message}" if message else "")
    return message or f"exit status {status}"


def remedies(status: int | None, text: str) -> list[str]:
    """What may help against it."""
    if any(mark in text for mark in OUT_OF_MEMORY):
        return [
            "The device ran out of memory: lower --gpu-memory-utilization, --max-num-seqs or --max-num-batched-tokens.",
        ]
    if any(mark in text for mark in DEVICE_FAULTS):
        return [
            "The device reported a fault: look for Xid lines in `dmesg`; try --enforce-eager, and another "
            "--attention-backend; CUDA_LAUNCH_BLOCKING=1 makes the stack name the kernel.",
        ]
    if "no progress" in text:
        return [
            "The process made no progress within its budget: the stacks below tell where it stood.",
            "If the step was only slow, raise --watchdog-timeout or lower --max-num-batched-tokens.",
        ]
    if status == -signal.SIGKILL:
        return [
            "Nobody but the kernel's out-of-memory killer or an operator sends SIGKILL: look at `dmesg` and the "
            "container's memory events.",
            "If it was memory: lower --kv-cache-memory-bytes or --num-kv-blocks, or raise the container's limit.",
        ]
    if status in (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT, -signal.SIGILL, -signal.SIGFPE):
        return ["Native code failed: the stacks below name it. Report it with this folder; try --enforce-eager."]
    return ["Report it with this folder: it holds no prompts, answers or keys."]


def plain_config(*configs: Any) -> dict[str, Any]:
    """What was set to other than its default, without secrets."""
    found = {}
    for config in configs:
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if value != field.default:
                found[field.name] = "(not shown)" if field.name in SECRETS else value
    return found


def write_report(folder: Path, process: str, cause: str, status: int | None, **facts: Any) -> Path | None:
    """Writes the report and one line of log; None, and the line only, where nothing can be written.

    `facts` are what else is known; lists of lines are shown as they are.
    """
    text = cause + "\n" + "\n".join("\n".join(v) for v in facts.values() if isinstance(v, list) and v and _lines(v))
    report = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "process": process,
        "cause": cause,
        "exit_status": status,
        "remedies": remedies(status, text),
        "octavo": VERSION,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        **facts,
    }
    path: Path | None = None
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{process}-{os.getpid()}-{time.monotonic_ns() % 10**6:06d}"
        path.mkdir(mode=0o700)
        (path / "report.json").write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
        (path / "report.md").write_text(_markdown(report), encoding="utf-8")
        for old in sorted(each for each in folder.iterdir() if (each / "report.json").is_file())[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    suspects = ",".join(str(each["id"]) for each in facts.get("suspects", [])[:4]) or None
    where = None if path is None else str(path)
    log.event("crash", logging.ERROR, process=process, cause=cause, suspects=suspects, report=where)
    return path


def _lines(value: list[Any]) -> bool:
    return all(isinstance(each, str) for each in value)


def _markdown(report: dict[str, Any]) -> str:
    parts = [f"# The {report['process']} process of Octavo {report['octavo']} ended: {report['cause']}\n"]
    parts += [f"- {each}" for each in report["remedies"]]
    for name, value in report.items():
        if name in ("remedies", "process", "cause", "octavo") or value in (None, [], {}):
            continue
        title = f"\n## {name.replace('_', ' ')}\n\n"
        if isinstance(value, list) and _lines(value):
            parts.append(title + "```\n" + "\n".join(value) + "\n```")
        elif isinstance(value, dict | list):
            parts.append(title + "```json\n" + json.dumps(value, indent=2, default=str) + "\n```")
        else:
            parts.append(f"{title}{value}")
    return "\n".join(parts) + "\n"
