"""`octavo serve` as a process: how it starts, what it says, how it ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from octavo.core.errors import ConfigError
from octavo.server.config import ServerConfig
from octavo.server.sockets import bind
from tests.server.conftest import wait_for

PROGRAM = """
import asyncio, sys
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError
from octavo.server.config import ServerConfig
from octavo.server.serve import serve
from tests.server.fake_engine import FakeLLM

async def start(engine, server):
    if "--fail" in sys.argv:
        raise ConfigError("there is no such model")
    await asyncio.sleep(0.2)
    return FakeLLM(delay=0.01)

try:
    sys.exit(serve(EngineConfig(), ServerConfig(port=0), start))
except ConfigError as error:
    sys.exit(f"octavo: {error}")
"""


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    running = subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=subprocess.PIPE, text=True)
    yield running
    running.kill()
    running.communicate()


def read_until(process: subprocess.Popen[str], word: str) -> str:
    assert process.stderr is not None
    text = ""
    while word not in text:
        line = process.stderr.readline()
        assert line, text
        text += line
    return text


def test_the_lines_that_it_prints_and_a_signal(process: subprocess.Popen[str]) -> None:
    said = read_until(process, "curl")
    url = re.search(r"http://127\.0\.0\.1:\d+", said)
    assert url is not None
    command = shlex.split(said.splitlines()[-1])
    assert command[:2] == ["curl", f"{url[0]}/v1/chat/completions"]
    body = json.loads(command[command.index("-d") + 1])
    answer = httpx.post(command[1], content=json.dumps({**body, "max_tokens": 3}), timeout=10)
    assert answer.json()["choices"][0]["finish_reason"] == "length"

    fields = {"prompt": "count", "max_tokens": 60, "stream": True}
    with httpx.stream("POST", f"{url[0]}/v1/completions", json=fields, timeout=10) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{url[0]}/readyz").status_code == 503)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert process.wait(5) == 0


def test_nobody_reads_what_it_says(process: subprocess.Popen[str]) -> None:
    """As under `| head -1`: it starts, serves, logs to nobody and drains."""
    url = re.search(r"http://127\.0\.0\.1:\d+", read_until(process, "loading"))
    assert url is not None and process.stderr is not None
    process.stderr.close()
    wait_for(lambda: httpx.get(f"{url[0]}/readyz").status_code == 200, 60)
    fields = {"prompt": "count", "max_tokens": 60, "stream": True}
    with httpx.stream("POST", f"{url[0]}/v1/completions", json=fields, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert process.wait(60) == 0
    process.stderr = None


def test_standard_streams_that_are_closed() -> None:
    """No socket takes their numbers: it would get what others print."""
    program = (
        "import os, sys; from octavo.core import log; log.hold_standard_streams(); log.say('x'); import socket;"
        "found = [socket.socket() for _ in range(3)];"
        "said = f'{min(each.fileno() for each in found)} {os.readlink(\"/proc/self/fd/2\")}';"
        "os.write(int(sys.argv[1]), said.encode())"
    )
    read, write = os.pipe()
    command = ["sh", "-c", f'exec "$0" -c "$1" {write} <&- >&- 2>&-', sys.executable, program]
    assert subprocess.run(command, pass_fds=[write], check=False).returncode == 0
    os.close(write)
    with open(read) as said:
        number, target = said.read().split()
    assert int(number) > 2 and target == "/dev/null"


def test_a_second_signal(process: subprocess.Popen[str]) -> None:
    url = re.search(r"http://127\.0\.0\.1:\d+", read_until(process, "curl"))
    assert url is not None
    fields = {"prompt": "count", "max_tokens": 4000, "stream": True}
    with httpx.stream("POST", f"{url[0]}/v1/completions", json=fields, timeout=10) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGINT)
        read_until(process, "Stopping")
        process.send_signal(signal.SIGTERM)
        assert "[DONE]" not in "".join(lines)
    assert process.wait(5) == 1


def test_an_engine_that_cannot_start() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, "--fail"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "octavo: there is no such model"
    assert "Traceback" not in done.stderr


def octavo(*args: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "OCTAVO_API_KEY"}
    command = [sys.executable, "-m", "octavo.cli.main", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, env=env)


def test_a_port_in_use_costs_no_model_load() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        begin = time.monotonic()
        done = octavo("serve", "no/such-model", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == f"octavo: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    assert time.monotonic() - begin < 5


def test_an_open_address_needs_a_key() -> None:
    done = octavo("serve", "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 1
    assert "--api-key" in done.stderr and len(done.stderr.splitlines()) == 1
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.com", "127.0.0.1.example.com"):
        with pytest.raises(ConfigError, match="insecure"):
            ServerConfig(host=host)
        assert ServerConfig(host=host, api_key=("k",)).host == host
        assert ServerConfig(host=host, insecure=True).host == host
    for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost"):
        assert ServerConfig(host=host).host == host


@pytest.mark.parametrize(
    "options",
    [{"port": 70000}, {"shutdown_timeout": -1}, {"max_body_bytes": 5}, {"api_key": ("",)}, {"root_path": "x/"}],
)
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        ServerConfig(**options)  # type: ignore[arg-type]


def test_bind() -> None:
    for host in ("localhost", "127.0.0.1"):
        with bind(host, 0) as sock:
            assert sock.getsockname()[0] == "127.0.0.1"
    with pytest.raises(ConfigError, match="cannot listen on no.such.host.invalid"):
        bind("no.such.host.invalid", 0)


def test_the_server_imports_no_torch() -> None:
    code = "import sys, octavo.server.serve, octavo.cli.terminal; print({'torch', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_as_many_descriptors_as_we_may_have() -> None:
    """Whatever the shell has left of them: each connection needs one."""
    program = (
        "import resource as r; hard = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (64, hard));"
        "from octavo.server import serve; serve.allow_connections();"
        "soft, kept = r.getrlimit(r.RLIMIT_NOFILE); print(soft > 64 and kept == hard)"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "True\n"


def test_no_variable_opens_a_route() -> None:
    """The table is the same whatever the environment says."""
    program = (
        "from octavo.core.config import EngineConfig; from octavo.server.app import App;"
        "from octavo.server.config import ServerConfig; app = App(ServerConfig(api_key=('k',)), EngineConfig());"
        "print([(each.method, each.path, each.public) for each in app.routes]); app.folder.close()"
    )
    loud = dict.fromkeys(("OCTAVO_DEBUG", "OCTAVO_DEV", "DEBUG", "VLLM_SERVER_DEV_MODE", "PYTHONDEVMODE"), "1")
    tables = {
        subprocess.check_output([sys.executable, "-c", program], env={**os.environ, **more}) for more in ({}, loud)
    }
    assert len(tables) == 1 and b"/v1/chat/completions" in tables.pop()
