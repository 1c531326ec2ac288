"""A folder as models have them, made of a lone GGUF file: config.json, tokenizer and chat template out of its metadata.

It lies in the user's cache, under a hash of the file's place, size and time, with a link to the file: whoever reads
models reads folders, in whichever process. Values are checked where configs are read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from octavo.core.errors import ModelError
from octavo.core.gguf.file import GgufFile
from octavo.core.gguf.tokenizer import make_tokenizer, special_ids
from octavo.version import VERSION

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
DTYPES = {"F32": "float32", "F16": "float16"}  # of matrices; what is quantised is computed in bfloat16
INSTEAD = "put it into a folder with config.json and the tokenizer of the original model"


def unpack(path: Path) -> Path:
    """The folder for a file."""
    path = path.resolve()
    place = _cache() / _key(path)
    folder = place / path.stem
    if folder.is_dir():
        return folder
    file = GgufFile(path, lists=True)
    files = {"config.json": make_config(file), **make_tokenizer(file)}
    files["generation_config.json"] = {"eos_token_id": special_ids(file, "eos", "eot"), **_bos(file)}
    template = file.metadata.get("tokenizer.chat_template")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=place.parent))
        inner = made / path.stem
        inner.mkdir()
        for name, value in files.items():
            (inner / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
        if isinstance(template, str):
            (inner / "chat_template.jinja").write_text(template, encoding="utf-8")
        (inner / path.name).symlink_to(path)
        try:
            made.rename(place)
        except OSError:  # another process was faster
            shutil.rmtree(made)
            if not folder.is_dir():
                raise
    except OSError as error:
        raise ModelError(f"{path}: its config cannot be kept in {place}: {error}; set XDG_CACHE_HOME") from None
    return folder


def make_config(file: GgufFile) -> dict[str, Any]:
    """config.json as transformers has it."""
    metadata = file.metadata
    kind = metadata.get("general.architecture")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(f"{file.path}: general.architecture {kind!r:.80} alone is not one of {known}: {INSTEAD}")
    if metadata.get("split.count", 1) not in (0, 1):
        raise ModelError(f"{file.path} is one of {metadata['split.count']!r:.10} parts: join them (llama-gguf-split)")
    if metadata.get(f"{kind}.expert_count"):
        raise ModelError(f"{file.path}: experts are not read from GGUF")

    def number(name: str, default: int | float | None = None) -> int | float:
        value = metadata.get(f"{kind}.{name}", default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise ModelError(f"{file.path}: {kind}.{name} must be a number, got {value!r:.80}")
        return value

    def count(name: str, default: int | None = None) -> int:
        value = number(name, default)
        if not isinstance(value, int):
            raise ModelError(f"{file.path}: {kind}.{name} must be whole, got {value!r:.80}")
        return value

    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{file.path}: tensor token_embd.weight is missing, or no matrix")
    heads, hidden = count("attention.head_count"), count("embedding_length")
    head_dim = count("attention.key_length", hidden // heads if heads > 0 else 0)
    types = Counter(stored.type.name for stored in file.tensors.values() if len(stored.shape) == 2)
    bias = "blk.0.attn_q.bias" in file.tensors
    config = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "dtype": DTYPES.get(types.most_common(1)[0][0], "bfloat16"),
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": count("feed_forward_length"),
        "num_hidden_layers": count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": count("context_length"),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_theta": number("rope.freq_base", 10000.0), **_scaling(file, kind, number)},
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": bias,
    }
    turned = count("rope.dimension_count", head_dim)
    if turned != head_dim:
        config["partial_rotary_factor"] = turned / max(head_dim, 1)
    return config


def _scaling(file: GgufFile, kind: str, number: Any) -> dict[str, Any]:
    """Of the rope. Llama 3's is a tensor of what divides each frequency, which is what longrope has too."""
    stored = file.tensors.get("rope_freqs.weight")
    if stored is not None:
        if stored.type.name != "F32" or len(stored.shape) != 1:
            raise ModelError(f"{file.path}: rope_freqs.weight must be a vector in F32")
        content = file.bytes[stored.start : stored.start + stored.size]
        factors = list(struct.unpack(f"<{stored.shape[0]}f", content))
        return {
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "factor": 1.0,
            "attention_factor": 1.0,
        }
    way = file.metadata.get(f"{kind}.rope.scaling.type", "none")
    if way == "none":
        return {"rope_type": "default"}
    if way not in ("linear", "yarn"):
        raise ModelError(f"{file.path}: {kind}.rope.scaling.type {way!r:.40} is not none, linear or yarn")
    found = {"rope_type": way, "factor": number("rope.scaling.factor")}
    if f"{kind}.rope.scaling.original_context_length" in file.metadata:
        found["original_max_position_embeddings"] = number("rope.scaling.original_context_length")
    return found


def _bos(file: GgufFile) -> dict[str, Any]:
    found = special_ids(file, "bos")
    return {"bos_token_id": found[0]} if found else {}


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "octavo" / "gguf"


def _key(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    told = f"{VERSION} {path} {status.st_size} {status.st_mtime_ns}"
    return hashlib.blake2b(told.encode(), digest_size=12).hexdigest()
