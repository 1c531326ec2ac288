"""Queries about an NVIDIA GPU. Nothing here runs on import."""

from __future__ import annotations

import os

import torch


def unavailable() -> str | None:
    """None if there is a GPU that torch can use, else why not."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    return None


def use_growing_segments() -> None:
    """Before the first allocation: steps of many sizes would otherwise leave gigabytes in pieces that fit nothing.

    Not where the environment says how to allocate.
    """
    if not any(name in os.environ for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")):
        torch._C._accelerator_setAllocatorSettings("expandable_segments:True")


def name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def memory(device: torch.device) -> tuple[int, int]:
    """(bytes that can still be taken by anyone, bytes in all)."""
    return torch.cuda.mem_get_info(device)


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability: (9, 0) is Hopper."""
    return torch.cuda.get_device_capability(device)


def num_sms(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def default_dtype(checkpoint: str, device: torch.device) -> tuple[str, str | None]:
    """The type to compute in for a checkpoint's, and the reason if it is another one."""
    if checkpoint == "bfloat16" and capability(device) < (8, 0):
        return "float16", f"{name(device)} has no bfloat16 matrix products"
    return checkpoint, None
