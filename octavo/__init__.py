"""Octavo: LLM inference and serving on a paged KV cache.

Everything here is imported when it is first used, so `import octavo` is quick and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from octavo.version import VERSION

if TYPE_CHECKING:
    from octavo.core.config import EngineConfig
    from octavo.core.errors import ConfigError, EngineError, OctavoError, RequestError
    from octavo.core.outputs import CompletionOutput, Logprob, RequestOutput
    from octavo.core.params import BeamSearchParams, RequestOutputKind, SamplingParams
    from octavo.core.pooling import (
        ClassificationRequestOutput,
        EmbeddingRequestOutput,
        PoolingParams,
        PoolingRequestOutput,
        ScoringRequestOutput,
    )
    from octavo.core.structured import StructuredOutputs, StructuredOutputsParams
    from octavo.engine.async_llm import AsyncLLM
    from octavo.llm import LLM

__version__ = VERSION

_HOMES = {
    "LLM": "octavo.llm",
    "AsyncLLM": "octavo.engine.async_llm",
    "BeamSearchParams": "octavo.core.params",
    "ClassificationRequestOutput": "octavo.core.pooling",
    "CompletionOutput": "octavo.core.outputs",
    "ConfigError": "octavo.core.errors",
    "EmbeddingRequestOutput": "octavo.core.pooling",
    "EngineConfig": "octavo.core.config",
    "EngineError": "octavo.core.errors",
    "Logprob": "octavo.core.outputs",
    "OctavoError": "octavo.core.errors",
    "PoolingParams": "octavo.core.pooling",
    "PoolingRequestOutput": "octavo.core.pooling",
    "RequestError": "octavo.core.errors",
    "RequestOutput": "octavo.core.outputs",
    "RequestOutputKind": "octavo.core.params",
    "SamplingParams": "octavo.core.params",
    "ScoringRequestOutput": "octavo.core.pooling",
    "StructuredOutputs": "octavo.core.structured",
    "StructuredOutputsParams": "octavo.core.structured",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "BeamSearchParams",
    "ClassificationRequestOutput",
    "CompletionOutput",
    "ConfigError",
    "EmbeddingRequestOutput",
    "EngineConfig",
    "EngineError",
    "Logprob",
    "OctavoError",
    "PoolingParams",
    "PoolingRequestOutput",
    "RequestError",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "ScoringRequestOutput",
    "StructuredOutputs",
    "StructuredOutputsParams",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
