"""The folder that a model is written to: safetensors files of a bounded size, then what lies beside them.

config.json comes last, so that a folder that was not finished is no model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from octavo.core.errors import ConfigError
from octavo.models.loader import INDEX, SINGLE

SHARD_BYTES = 5 << 30
# What a model folder has beside weights: tokenizer, templates, generation settings.
BESIDE = ("*.json", "*.jinja", "*.txt", "*.tiktoken", "tokenizer.model", "additional_chat_templates/*.jinja")


class Output:
    """Tensors are kept until they fill a file."""

    def __init__(self, folder: Path, source: Path, overwrite: bool) -> None:
        self.folder, self.source = folder, source
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"OUT {folder} is a file; give a folder")
        if folder.is_dir() and folder.resolve() == source.resolve():
            raise ConfigError(f"OUT {folder} is MODEL itself")
        if folder.is_dir() and any(folder.iterdir()):
            if not overwrite:
                raise ConfigError(f"OUT {folder} is not empty: choose another folder, or give --overwrite")
            for file in (folder / "config.json", folder / INDEX, *folder.glob("*.safetensors")):
                file.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.waiting: dict[str, Tensor] = {}
        self.size = 0
        self.total = 0
        self.shards: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        if self.waiting and self.size + tensor.nbytes > SHARD_BYTES:
            self._flush()
        self.waiting[name] = tensor.contiguous()
        self.size += tensor.nbytes
        self.total += tensor.nbytes

    def close(self, config: dict[str, Any]) -> None:
        """Everything else, `config` as config.json."""
        self._flush()
        count = len(self.shards)
        names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)] if count > 1 else [SINGLE]
        for i, name in enumerate(names):
            (self.folder / f"part-{i}.safetensors").rename(self.folder / name)
        if count > 1:
            places = {tensor: name for name, shard in zip(names, self.shards, strict=True) for tensor in shard}
            index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(places.items()))}
            _write_json(self.folder / INDEX, index)
        for pattern in BESIDE:
            for file in sorted(self.source.glob(pattern)):
                if file.name not in ("config.json", INDEX):
                    target = self.folder / file.relative_to(self.source)
                    target.parent.mkdir(exist_ok=True)
                    shutil.copyfile(file, target)
        _write_json(self.folder / "config.json", config)

    def _flush(self) -> None:
        if self.waiting:
            file = self.folder / f"part-{len(self.shards)}.safetensors"
            save_file(self.waiting, file, metadata={"format": "pt"})
            self.shards.append(list(self.waiting))
            self.waiting, self.size = {}, 0


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
