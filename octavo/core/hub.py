"""From what a user calls a model to a folder on this machine. Only data is ever fetched: no code, no pickles."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError
from octavo.core.gguf.folder import unpack

TOKENIZER_FILES = ("*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt")
ALLOWED = (*TOKENIZER_FILES, "*.safetensors")
# Folders hold other formats of the same weights; so do "consolidated" files.
IGNORED = ("*/*", "consolidated*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


def model_folder(config: EngineConfig, files: tuple[str, ...] = ALLOWED) -> Path:
    return resolve_model(config.model, config.revision, files, config.download_dir, config.hf_token)


def tokenizer_folder(config: EngineConfig, folder: Path) -> Path:
    """`folder` is the model's."""
    if config.tokenizer is None:
        return folder
    name, revision = config.tokenizer, config.tokenizer_revision
    return resolve_model(name, revision, TOKENIZER_FILES, config.download_dir, config.hf_token)


def config_folder(config: EngineConfig) -> Path:
    """A folder with the model's config.json, perhaps without its weights: of a Hugging Face id only that is fetched."""
    return model_folder(config, ("config.json", "generation_config.json"))


def resolve_model(
    name: str | None,
    revision: str | None = None,
    files: tuple[str, ...] = ALLOWED,
    cache: str | None = None,
    token: str | None = None,
) -> Path:
    """A local folder as it is, a GGUF file as a folder made of it, a Hugging Face id downloaded (or found in its
    cache), None as the demo model.

    `cache` is the folder of that cache, and `token` the key for the hub, where they are not the usual ones.
    """
    if name is None:
        from octavo.demo import MODEL_DIR

        return MODEL_DIR
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.absolute()  # for processes that may run elsewhere
    if folder.exists():
        if folder.suffix == ".gguf":
            return unpack(folder)
        raise ConfigError(f"model {name!r} is a file; give the folder that holds config.json and the weights")
    if not _HUB_ID.fullmatch(name):
        raise ConfigError(f"model {name!r} is neither a folder nor a Hugging Face id such as Qwen/Qwen3-0.6B")
    return _download(name, revision, files, {"cache_dir": cache, "token": token})


def _download(name: str, revision: str | None, files: tuple[str, ...], access: dict[str, Any]) -> Path:
    from huggingface_hub import errors, snapshot_download

    label = f"model {name!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        path = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(files),
            ignore_patterns=list(IGNORED),
            **access,
        )
    except errors.GatedRepoError:
        raise ConfigError(f"{label} is gated: accept its licence on huggingface.co and set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise ConfigError(f"{label}: the hub has the model but not this revision") from None
    except errors.RepositoryNotFoundError:
        raise ConfigError(f"{label} is not a folder here, and not on the hub (or private: set HF_TOKEN)") from None
    except errors.LocalEntryNotFoundError:
        raise ConfigError(
            f"{label} is not a folder here nor in the hub's cache, and the hub cannot be reached"
        ) from None
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(f"{label} cannot be downloaded: {reason}") from None
    return Path(path)
