"""Weights of a GGUF file into a model. The folder that holds it has config.json and the tokenizer beside it, from the
original model or made of the file (`octavo.core.gguf.folder`).

llama.cpp's names become the hub's; its order of rows in Llama's queries and keys (neighbours are turned together) and
its norms of Gemma (one added) are undone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from octavo.core.errors import ModelError
from octavo.core.gguf.file import GgufFile
from octavo.models.decoder import Decoder
from octavo.models.quantized import QuantizedWeights
from octavo.quant.gguf import read_matrix

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FOUR_NORMS = {
    **_LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# general.architecture and the names in a layer.
LAYERS = {
    "llama": _LAYER,
    "qwen2": _LAYER,
    "qwen3": _LAYER,
    "gemma": _LAYER,
    "gemma2": _FOUR_NORMS,
    "gemma3": _FOUR_NORMS,
}
IGNORED = ("rope_freqs.weight",)  # the config has them, however it was made


def fill_from_gguf(model: Decoder, path: Path, on_tensor: Callable[[], None] = lambda: None) -> None:
    """Every tensor of the file to its place, and every place filled. `on_tensor` hears of each."""
    file = GgufFile(path)
    kind = file.metadata.get("general.architecture")
    if kind not in LAYERS:
        raise ModelError(f"{path}: general.architecture {kind!r:.80} is not one of {', '.join(LAYERS)}")
    weights = QuantizedWeights(model, None, None)
    left = set(weights.names)
    for stored, entry in file.tensors.items():
        if stored in IGNORED:
            continue
        name = _name(stored, LAYERS[kind])
        if name not in weights.names:
            raise ModelError(f"{path}: tensor {stored} has no place in {model.spec.architecture}")
        target = weights.names[name]
        if tuple(target.shape) != entry.shape:
            raise ModelError(
                f"{path}: tensor {stored} is {list(entry.shape)}; the config asks for {list(target.shape)}"
            )
        scheme, order = read_matrix(file, stored), _order(model, kind, stored)
        if target.dim() == 2:
            weights.give(name.removesuffix(".weight"), scheme if order is None else scheme.map_rows(order))
        else:
            vector = scheme.dequantize(torch.float32).view(-1)
            vector = vector if order is None else order(vector)
            target.copy_(vector - 1 if kind.startswith("gemma") and name.endswith("norm.weight") else vector)
        on_tensor()
        left -= {known for known in left if weights.same(known, name)}
    if left:
        raise ModelError(f"{path}: tensor {min(left)} is missing")


def _name(stored: str, layer: dict[str, str]) -> str:
    """The hub's name, or the name itself where it is not known."""
    found = re.fullmatch(r"(?:blk\.(\d{1,5})\.)?(\w+)\.(weight|bias)", stored)
    if found is None:
        return stored
    index, part, suffix = found.groups()
    if index is None:
        return f"{_TOP.get(part, part)}.{suffix}"
    return f"model.layers.{index}.{layer.get(part, part)}.{suffix}"


def _order(model: Decoder, kind: str, stored: str) -> Callable[[Tensor], Tensor] | None:
    """Puts Llama's rows of heads, in which neighbours are turned together, as halves that are; None: they are right."""
    part = re.fullmatch(r"blk\.\d+\.attn_([qk])\.(?:weight|bias)", stored)
    if kind != "llama" or part is None:
        return None
    heads = model.spec.num_heads if part[1] == "q" else model.spec.num_kv_heads
    return lambda rows: rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
