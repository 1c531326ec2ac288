"""schemathesis against a running server: what the OpenAPI document allows and what it forbids, NUL bytes, and chains of
requests along its links. No answer is an error of ours, and each has a status and a form that the document has.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from octavo.demo import MODEL_DIR
from octavo.server.openapi import OPERATIONS
from tests.server.conftest import Running, wait_for

pytestmark = pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed")

CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"),
    *("response_headers_conformance", "unsupported_method", "allow_header_conformance", "use_after_free"),
)
# A deadline of a millisecond is among what is tried, and 504 is its answer.
CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
"""


def fuzz(url: str, folder: Path, *flags: str) -> Counter[str]:
    """Runs schemathesis; how many answers of each status there were."""
    (folder / "schemathesis.toml").write_text(CONFIG)
    report = folder / "report.ndjson"
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    command += ["--config-file", str(folder / "schemathesis.toml"), "run", f"{url}/openapi.json", "--url", url]
    command += ["--checks", ",".join(CHECKS), "--continue-on-failure", "--no-shrink", "--request-timeout", "60"]
    command += ["--suppress-health-check", "all", "--generation-database", "none", "--generation-allow-x00", "true"]
    command += ["--report", "ndjson", "--report-ndjson-path", str(report), "--no-color", *flags]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    found: Counter[str] = Counter()
    for line in report.read_text().splitlines():
        for value in json.loads(line).values():
            for each in (value.get("recorder") or {}).get("interactions", {}).values():
                found[str((each.get("response") or {}).get("status_code"))] += 1
    return found


def test_a_short_while(server: Running, tmp_path: Path) -> None:
    found = fuzz(server.url, tmp_path, "--phases", "fuzzing,stateful", "-n", "4", "--seed", "1")
    assert found["200"] > 20 and found["400"] > 20


@pytest.mark.slow
def test_at_length(tmp_path: Path) -> None:
    """On the demo model, with every phase: some 10,000 requests a hundred examples."""
    examples = os.environ.get("OCTAVO_FUZZ_EXAMPLES", "100")
    command = [sys.executable, "-m", "octavo.cli.main", "serve", str(MODEL_DIR), "--port", "0", "--device", "cpu"]
    command += ["--max-model-len", "512", "--data-dir", str(tmp_path / "data")]
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    try:
        wait_for(lambda: "curl http" in log.read_text() or process.poll() is not None, seconds=60)
        assert process.poll() is None, log.read_text()
        url = log.read_text().partition("curl ")[2].partition("/v1")[0]
        found = fuzz(url, tmp_path, "-n", examples)
        assert sum(found.values()) > 20 * len(OPERATIONS)
        assert "internal_error" not in log.read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(90)
