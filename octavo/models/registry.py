"""Architecture names of config.json and the classes that serve them, imported when one is asked for."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from octavo.core.errors import ModelError

if TYPE_CHECKING:
    from octavo.models.decoder import Decoder

ARCHITECTURES = {
    "InternLM3ForCausalLM": "octavo.models.llama:InternLM3",
    "LLaMAForCausalLM": "octavo.models.llama:Llama",  # checkpoints converted before transformers fixed the name
    "LlamaForCausalLM": "octavo.models.llama:Llama",
    "MinistralForCausalLM": "octavo.models.mistral:Ministral",
    "MistralForCausalLM": "octavo.models.mistral:Mistral",
    "Qwen2ForCausalLM": "octavo.models.qwen2:Qwen2",
    "Qwen3ForCausalLM": "octavo.models.qwen3:Qwen3",
    "SeedOssForCausalLM": "octavo.models.llama:SeedOss",
}


def load_class(architecture: str) -> type[Decoder]:
    target = ARCHITECTURES.get(architecture)
    if target is None:
        near = difflib.get_close_matches(architecture, ARCHITECTURES, n=3, cutoff=0.5)
        known = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(ARCHITECTURES)}"
        raise ModelError(f"architecture {architecture!r:.80} is not supported; {known}")
    module, name = target.split(":")
    family: type[Decoder] = getattr(importlib.import_module(module), name)
    return family
