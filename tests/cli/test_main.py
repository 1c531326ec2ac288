"""The commands: what they pass on, and how they fail."""

from __future__ import annotations

from typing import Any

import pytest

import octavo.server.serve
from octavo.cli.main import main
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError
from octavo.server.config import ServerConfig
from octavo.version import VERSION


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[EngineConfig, ServerConfig]]:
    calls: list[tuple[EngineConfig, ServerConfig]] = []

    def serve(engine: EngineConfig, server: ServerConfig) -> int:
        calls.append((engine, server))
        return 0

    monkeypatch.setattr(octavo.server.serve, "serve", serve)
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

    def fail(engine: EngineConfig, server: ServerConfig) -> int:
        raise ConfigError("no such model")

    monkeypatch.setattr(octavo.server.serve, "serve", fail)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == "octavo: no such model\n"

    def interrupt(engine: EngineConfig, server: ServerConfig) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(octavo.server.serve, "serve", interrupt)
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
