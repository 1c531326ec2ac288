"""Which backend computes a model's experts: the first of an ordered list that can, with the reasons of the others."""

from __future__ import annotations

import functools
import logging
from importlib import import_module

from octavo.core.errors import ConfigError
from octavo.moe.base import MoeBackend, MoeSpec

log = logging.getLogger(__name__)

# Fastest first: name, module, class. A module is imported when its turn comes.
BACKENDS = (
    ("triton", "octavo.moe.triton_backend", "TritonExperts"),
    ("torch", "octavo.moe.torch_backend", "TorchExperts"),
)


@functools.cache
def select_experts(spec: MoeSpec) -> tuple[type[MoeBackend], tuple[str, ...]]:
    """The backend's class, and a line for each that was asked before it and cannot serve `spec`. Logged once."""
    lost: list[str] = []
    for name, module, attribute in BACKENDS:
        try:
            found: type[MoeBackend] = getattr(import_module(module), attribute)
        except ImportError as error:
            lost.append(f"{name} cannot: {error}")
            continue
        reason = found.supports(spec)
        if reason is None:
            log.info("experts: %s", "; ".join([f"{name} runs", *lost]))
            return found, tuple(lost)
        lost.append(f"{name} cannot: {reason}")
    raise ConfigError(f"nothing can compute this model's experts: {'; '.join(lost)}")
