"""Which attention backend serves a model: the first of an ordered list that can, with the reasons of the others."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from octavo.attention.base import AttentionBackend, AttentionSpec
from octavo.core.errors import ConfigError

# Fastest first: name, module, class. A module is imported when its turn comes.
BACKENDS = (
    ("hopper", "octavo.attention.hopper_backend", "HopperAttention"),
    ("latent", "octavo.attention.latent_backend", "LatentAttention"),
    ("triton", "octavo.attention.triton_backend", "TritonAttention"),
    ("torch", "octavo.attention.torch_backend", "TorchAttention"),
)
# Those for whole prompts, of which nothing is kept.
VARLEN_BACKENDS = (
    ("triton", "octavo.attention.varlen_triton", "TritonVarlen"),
    ("torch", "octavo.attention.varlen_torch", "TorchVarlen"),
)


def select_varlen(name: str, spec: AttentionSpec) -> tuple[type[AttentionBackend], list[str]]:
    """As `select_backend`, for models that read."""
    return select_backend(name, spec, VARLEN_BACKENDS)


def select_backend(
    name: str, spec: AttentionSpec, backends: Sequence[tuple[str, str, str]] = BACKENDS
) -> tuple[type[AttentionBackend], list[str]]:
    """The backend's class, and one line for each that was asked before it and cannot serve `spec`.

    A `name` other than "auto" forces that one: if it cannot, that is an error with its reason.
    """
    asked = [backend for backend in backends if name in ("auto", backend[0])]
    if not asked:
        known = ", ".join(["auto", *(backend[0] for backend in backends)])
        raise ConfigError(f"attention_backend must be one of {known}, got {name!r}")
    lost: list[str] = []
    for candidate, module, attribute in asked:
        found, reason = _try(module, attribute, spec)
        if found is not None:
            return found, lost
        lost.append(f"{candidate} cannot: {reason}")
    raise ConfigError(f"no attention backend can serve this model: {'; '.join(lost)}")


def _try(module: str, attribute: str, spec: AttentionSpec) -> tuple[type[AttentionBackend] | None, str | None]:
    try:
        found: type[AttentionBackend] = getattr(import_module(module), attribute)
    except ImportError as error:
        return None, str(error)
    reason = found.supports(spec)
    return (found, None) if reason is None else (None, reason)
