from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from octavo.core.config import EngineConfig
from octavo.core.crash import plain_config
from octavo.core.errors import ConfigError
from octavo.core.hub import ALLOWED, IGNORED, config_folder, model_folder, resolve_model, tokenizer_folder


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path


def test_no_name_is_the_demo_model() -> None:
    from octavo.demo import MODEL_DIR

    assert resolve_model(None) == MODEL_DIR


@pytest.mark.parametrize("name", ["./missing", "/no/such/folder", "a/b/c", "two words", "../up", "org/.hidden"])
def test_neither_folder_nor_id(name: str) -> None:
    with pytest.raises(ConfigError, match="neither a folder nor a Hugging Face id"):
        resolve_model(name)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="is a file"):
        resolve_model(str(tmp_path / "model.safetensors"))


def test_unreachable_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="hub cannot be reached"):
        resolve_model("some-org/no-such-model", "main")


def test_the_cache_serves_what_was_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    snapshot = tmp_path / "models--org--name" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert resolve_model("org/name", "0" * 40) == snapshot


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", "is gated"),
        ("RevisionNotFoundError", "not this revision"),
        ("RepositoryNotFoundError", "not on the hub"),
        ("HfHubHTTPError", "cannot be downloaded"),
    ],
)
def test_refusals_of_the_hub(error: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*args: object, **kwargs: object) -> str:
        failure = getattr(errors, error)
        raise failure.__new__(failure, "server said no")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ConfigError, match=message):
        resolve_model("org/name")


def test_only_data_is_asked_for() -> None:
    from huggingface_hub.utils import filter_repo_objects

    files = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
        "chat_template.jinja",
        "vocab.txt",
        "merges.txt",
        "modeling_custom.py",
        "pytorch_model.bin",
        "optimizer.pt",
        "weights.pkl",
        "original/consolidated.00.pth",
        "original/params.json",
        "onnx/model.safetensors",
        "consolidated.safetensors",
        "README.md",
    ]
    kept = list(filter_repo_objects(files, allow_patterns=list(ALLOWED), ignore_patterns=list(IGNORED)))
    assert kept == files[:8]


def test_torch_is_not_imported() -> None:
    import subprocess

    code = "import sys, octavo.core.hub; octavo.core.hub.resolve_model('.'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_configuration_says_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked: list[tuple[str, dict[str, Any]]] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    config = EngineConfig(
        model="org/model",
        revision="v1",
        tokenizer="org/words",
        tokenizer_revision="v2",
        download_dir=str(tmp_path / "cache"),
        hf_token="secret",
    )
    assert tokenizer_folder(config, model_folder(config)) == config_folder(config) == tmp_path
    (model, first), (words, second), (_, third) = asked
    assert (model, first["revision"], words, second["revision"]) == ("org/model", "v1", "org/words", "v2")
    assert all(each["cache_dir"] == str(tmp_path / "cache") and each["token"] == "secret" for _, each in asked)
    assert "*.safetensors" in first["allow_patterns"] and "*.safetensors" not in second["allow_patterns"]
    assert "config.json" in third["allow_patterns"]
    assert plain_config(config)["hf_token"] == "(not shown)"
