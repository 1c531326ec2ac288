"""Programmatic dependent launch (NVIDIA from 9.0): a kernel is launched while its predecessor still runs and waits for
it itself, and lets its successor do the same, which saves about a microsecond."""

from __future__ import annotations

import functools

import torch

# Launch options with and without. Other platforms do not know them.
CHAIN: dict[bool, dict[str, bool]] = {True: {"CHAINED": True, "launch_pdl": True}, False: {"CHAINED": False}}


@functools.cache
def chain(device: torch.device) -> dict[str, bool]:
    """The launch options for a device, `CHAINED` of the kernel among them."""
    if device.type != "cuda" or torch.version.hip is not None:
        return CHAIN[False]
    return CHAIN[torch.cuda.get_device_capability(device) >= (9, 0)]
