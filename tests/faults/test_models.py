"""Section E: models made by strangers, and who may speak to the processes."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from octavo.core.child import HEADER, MAX_FRAME
from octavo.engine.ipc import Codec
from octavo.grammar.messages import Check, Checked, News
from tests.faults.subject import KEY, Subject, family

DEMO = Path(__file__).parents[2] / "octavo" / "demo" / "model"


def serve(folder: Path, *flags: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Tries to; it must end by itself."""
    command = [
        sys.executable,
        "-O",
        "-m",
        "octavo.cli.main",
        "serve",
        str(folder),
        "--port",
        "0",
        "--device",
        "cpu",
        *flags,
    ]
    if cwd is not None:
        command.insert(1, "-P")
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO, tmp_path / "model"))


def test_E4_code_in_a_model(folder: Path, tmp_path: Path) -> None:
    """Its Python files, its pickles, its template: nothing of them runs, under `python -O` and in its own folder."""
    canary = tmp_path / "canary"
    touch = f"open({str(canary)!r}, 'w').close()\n"
    for name in ("modeling_own", "configuration_own", "tokenization_own", "sitecustomize", "msgspec", "numpy", "torch"):
        (folder / f"{name}.py").write_text(touch)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "configuration_own.C", "AutoModelForCausalLM": "modeling_own.M"}
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["OwnForCausalLM"], "auto_map": names}))
    done = serve(folder, cwd=folder)
    assert done.returncode == 1 and "OwnForCausalLM" in done.stderr and "Traceback" not in done.stderr, done.stderr
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": names}))
    for weights in folder.glob("*.safetensors*"):
        weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.")
    done = serve(folder, cwd=folder)
    assert done.returncode == 1 and "is a pickle, which is never opened" in done.stderr, done.stderr
    assert not canary.exists()


def test_E4_a_template_in_a_model(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    attack = "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}".replace("CANARY", str(canary))
    for place in folder.glob("*.jinja"):
        place.unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["tokenization_own.T", None]}
    config["chat_template"] = attack
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "s").mkdir()
    subject = Subject(tmp_path / "s", "--model", str(folder))
    try:
        answer = subject.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
        assert answer.status_code == 400 and "not allowed" in answer.json()["error"]["message"], answer.text
    finally:
        assert subject.close() == 0
    assert not canary.exists()


def test_C2_a_template_without_end(folder: Path, tmp_path: Path) -> None:
    """It stops whoever renders it, and nobody else: streams go on, and so do their texts."""
    (folder / "chat_template.jinja").write_text(
        "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}"
    )
    (tmp_path / "s").mkdir()
    subject = Subject(tmp_path / "s", "--model", str(folder))
    try:
        before = subject.snapshot()
        with subject.canaries():
            for path, size in (("/v1/chat/completions", 1), ("/v1/messages", 1), ("/tokenize", 1 << 16)):
                body = {"messages": [{"role": "user", "content": "x" * size}], "max_tokens": 8, "model": "model"}
                answer = subject.post(path, body)
                assert answer.status_code == 400 and "too much memory" in answer.text, (path, answer.text)
        subject.check(before)
    finally:
        assert subject.close() == 0


LIES = {
    "a terabyte of header": struct.pack("<Q", 1 << 40),
    "a header of text": struct.pack("<Q", 4) + b"nope",
    "an offset after the end": {"a": {"dtype": "F32", "shape": [4], "data_offsets": [1 << 40, (1 << 40) + 16]}},
    "an overlap": {
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
    },
    "a shape that overflows": {"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 16]}},
}


def lies(folder: Path, what: str) -> None:
    (file,) = folder.glob("*.safetensors")
    lie = LIES[what]
    text = json.dumps(lie).encode() if isinstance(lie, dict) else b""
    file.write_bytes(lie if isinstance(lie, bytes) else struct.pack("<Q", len(text)) + text + bytes(24))
    done = serve(folder)
    assert done.returncode == 1 and "not a sound safetensors file" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_E2_a_lying_header(folder: Path) -> None:
    lies(folder, "an overlap")


@pytest.mark.slow
@pytest.mark.parametrize("what", LIES)
def test_E2_lying_headers(folder: Path, what: str) -> None:
    lies(folder, what)


def listening(pids: set[int]) -> list[str]:
    """Addresses that these processes listen on, of any family; a Unix socket by its path."""
    inodes = set()
    for pid in pids:
        for each in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{each}")
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6", "raw"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[9] in inodes and (columns[3] == "0A" or not table.startswith("tcp")):
                found.append(columns[1])
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[6] in inodes and len(columns) > 7:
            found.append(columns[7])
    return found


def test_E6_who_listens(subject: Subject) -> None:
    found = listening(set(family(subject.process.pid)))
    addresses = [each for each in found if each not in (subject.admin,)]
    assert set(addresses) == {f"0100007F:{subject.port:04X}"}, found
    assert stat.S_IMODE(os.stat(subject.admin).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(subject.admin)).st_mode) == 0o700


def test_E7_random_frames() -> None:
    """Between the processes are socket pairs that nobody else can open; what decodes their frames is tried here."""
    rng, codec = random.Random(0), Codec()
    decoders = [codec.to_engine, codec.from_engine, *map(msgspec.msgpack.Decoder, (Check, Checked, News))]
    pickled = b"\x80\x04cos\nsystem\n(S'id'\ntR."
    seeds = [pickled, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 100_000]
    refused = 0
    for i in range(10_000):
        data = seeds[i] if i < len(seeds) else rng.randbytes(rng.choice((1, 8, 64, 512)))
        for decoder in decoders:
            try:
                decoder.decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                refused += 1
    assert refused > 49_000
    assert HEADER.unpack(b"\xff\xff\xff\xff")[0] > MAX_FRAME


def test_E9_what_is_told_about_the_server(subject: Subject) -> None:
    """Metrics, models, version, the log: no prompts, keys or paths."""
    secret = "the prompt of somebody"
    assert subject.post("/v1/completions", {"prompt": secret, "max_tokens": 4}).status_code == 200
    told = [subject.request("GET", path).text for path in ("/metrics", "/v1/models", "/version", "/tokenizer_info")]
    told += [json.dumps(subject.state()), subject.log.read_text().partition("curl")[2].partition("\n")[2]]
    for text in told:
        assert secret not in text and KEY not in text
        assert str(subject.folder) not in text and "/site-packages" not in text and str(DEMO.parent) not in text
