"""The kernels of experts compile for NVIDIA and AMD, without a device, and fit into their shared memory."""

from __future__ import annotations

import os
import subprocess
import sys


def test_kernels_compile_for_every_target(tmp_path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-m", "tests.moe.compile_all"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 69
    assert {line[1] for line in lines} == {"80", "90", "100", "gfx942", "gfx1100"}
