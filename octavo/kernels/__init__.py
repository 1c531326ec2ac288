"""Kernels, each with a reference in torch beside it. Triton is imported by those who use it, never by this file."""

from __future__ import annotations

import functools
from importlib import import_module
from types import ModuleType

import torch


def skinny_for(device: torch.device) -> ModuleType | None:
    """`octavo.kernels.skinny_linear` likewise."""
    return None if elementwise_for(device) is None else import_module("octavo.kernels.skinny_linear")


@functools.cache
def elementwise_for(device: torch.device) -> ModuleType | None:
    """`octavo.kernels.elementwise` for a GPU with Triton; None where torch computes."""
    if device.type != "cuda":
        return None
    try:
        return import_module("octavo.kernels.elementwise")
    except ImportError:
        return None
