"""The commands: what they pass on, and how they fail."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

import octavo.server.serve
import octavo.server.sockets
import octavo.supervisor
from octavo.cli.main import main
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError
from octavo.server.config import ServerConfig
from octavo.version import VERSION


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[EngineConfig, ServerConfig]]:
    """What would be served: without a socket, and without a process that watches."""
    calls: list[tuple[EngineConfig, ServerConfig]] = []

    def front(engine: EngineConfig, server: ServerConfig, *sockets: Any) -> int:
        calls.append((engine, server))
        return 0

    monkeypatch.setattr(octavo.server.serve, "front", front)
    monkeypatch.setattr(octavo.server.sockets, "listen", contextlib.nullcontext)
    monkeypatch.setattr(octavo.supervisor, "supervise", lambda run, *options: run(None))
    monkeypatch.delenv("OCTAVO_API_KEY", raising=False)
    return calls


def test_serve(served: list[Any]) -> None:
    assert main(["serve"]) == 0
    assert main(["serve", "some/model", "--port", "9", "--no-enable-prefix-caching", "--max-model-len", "8k"]) == 0
    assert main(["serve", "--model", "some/model"]) == 0
    assert main(["serve", "--api-key", "a", "some/model", "--api-key", "b", "--host", "0.0.0.0"]) == 0
    assert served == [
        (EngineConfig(), ServerConfig()),
        (EngineConfig(model="some/model", enable_prefix_caching=False, max_model_len=8000), ServerConfig(port=9)),
        (EngineConfig(model="some/model"), ServerConfig()),
        (EngineConfig(model="some/model"), ServerConfig(api_key=("a", "b"), host="0.0.0.0")),
    ]


def test_keys_from_the_environment(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_API_KEY", "one,two,")
    main(["serve"])
    main(["serve", "--api-key", "three"])
    assert [server.api_key for _, server in served] == [("one", "two"), ("three",)]


def test_errors_are_one_line(
    served: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--block-size", "0"]) == 1
    assert capsys.readouterr().err == "octavo: block_size must be in [1, 1024], got 0\n"

    def fail(*arguments: Any) -> int:
        raise ConfigError("no such model")

    monkeypatch.setattr(octavo.server.serve, "front", fail)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == "octavo: no such model\n"

    def interrupt(*arguments: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(octavo.server.serve, "front", interrupt)
    assert main(["serve"]) == 130


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"{VERSION}\n"


@pytest.mark.parametrize("args", [[], ["sevre"], ["serve", "a", "b"], ["run"]])
def test_wrong_commands(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2
    assert "octavo" in capsys.readouterr().err


def test_flags_from_a_file(served: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "octavo.yaml"
    file.write_text(
        "model: some/model\nport: 9001\nhf-overrides: {rope_theta: 5}\n"
        "max_model_len: 4k\nenable-prefix-caching: false\nserved-model-name: [a, b]\n"
    )
    assert main(["serve", "--port", "9002", "--config", str(file)]) == 0
    engine, server = served[-1]
    assert (engine.model, engine.max_model_len, engine.enable_prefix_caching) == ("some/model", 4000, False)
    assert (server.port, server.served_model_name) == (9002, ("a", "b"))
    assert engine.overrides == {"rope_theta": 5}
    assert main(["serve", f"--config={file}"]) == 0
    assert served[-1][1].port == 9001


@pytest.mark.parametrize(
    "text", ["[", "- a", "5", "port: [{a: b}]", "port: [[1]]", "1: 2", "!!python/object:os.system {}"]
)
def test_files_of_flags_that_are_wrong(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f.yaml").write_text(text)
    assert main(["serve", "--config", str(tmp_path / "f.yaml")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("octavo: --config") and len(said.splitlines()) == 1
    with pytest.raises(SystemExit):
        (tmp_path / "f.yaml").write_text("prot: 1")
        main(["serve", "--config", str(tmp_path / "f.yaml")])
    assert "did you mean --port?" in capsys.readouterr().err
