"""What is particular to a kind of device: queries and defaults, one module a kind, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.core.errors import ConfigError

if TYPE_CHECKING:
    import torch


def pick_device(device: str) -> torch.device:
    """The device for a `--device`: "auto" is the GPU if there is one. The index is the current one."""
    import torch

    from octavo.platforms import cuda

    reason = cuda.unavailable()
    if device == "cpu" or (device == "auto" and reason is not None):
        return torch.device("cpu")
    if reason is not None:
        raise ConfigError(f"device {device}: {reason}")
    return torch.device("cuda", torch.cuda.current_device())


def default_dtype(checkpoint: str, device: torch.device) -> tuple[str, str | None]:
    """The type to compute in for a checkpoint's on this device, and the reason if it is another one."""
    from octavo.platforms import cpu, cuda

    return cpu.default_dtype(checkpoint) if device.type == "cpu" else cuda.default_dtype(checkpoint, device)
