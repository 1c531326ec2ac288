"""What is to be done to a model: a scheme by name, how numbers are rounded, and what a config says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octavo.core.errors import ConfigError
from octavo.quantize.rounding import Grid

METHODS = ("rtn", "gptq")
VERSION = "0.20.0"  # of compressed-tensors, whose layout this is


@dataclass(frozen=True, slots=True)
class Scheme:
    """`activations`: rounded for each token, by a scale that calibration finds, or not at all."""

    name: str
    bits: int
    float: bool
    strategy: str  # of weights: tensor, channel, group
    activations: str | None  # token, tensor
    layout: str


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("fp8", 8, True, "tensor", "tensor", "float-quantized"),
        Scheme("fp8-dynamic", 8, True, "channel", "token", "float-quantized"),
        Scheme("int8", 8, False, "channel", "token", "int-quantized"),
        Scheme("w8a16", 8, False, "channel", None, "pack-quantized"),
        Scheme("w4a16", 4, False, "group", None, "pack-quantized"),
    )
}
ALIASES = {"int4": "w4a16"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """`samples` pieces of `length` tokens calibrate; `act_order`: GPTQ rounds the columns that matter most first."""

    scheme: Scheme
    method: str = "rtn"
    group_size: int = 128
    symmetric: bool = True
    act_order: bool = True
    dampening: float = 0.01
    samples: int = 128
    length: int = 2048
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"--method must be one of {', '.join(METHODS)}, got {self.method!r:.80}")
        if self.method == "gptq" and self.scheme.float:
            raise ConfigError(f"--method gptq is for integers: --scheme {self.scheme.name} rounds to nearest")
        if not self.symmetric and self.scheme.layout != "pack-quantized":
            raise ConfigError(f"--asymmetric is for w4a16 and w8a16, not for --scheme {self.scheme.name}")
        for flag, value in (("group-size", self.group_size), ("samples", self.samples), ("length", self.length)):
            if value < 1:
                raise ConfigError(f"--{flag} must be at least 1, got {value}")
        if self.group_size % 2:
            raise ConfigError(f"--group-size must be even, got {self.group_size}")
        if not 0 < self.dampening < 1:
            raise ConfigError(f"--dampening must be between 0 and 1, got {self.dampening}")

    @property
    def static(self) -> bool:
        """Activations get a scale that calibration finds."""
        return self.scheme.activations == "tensor"

    @property
    def calibrated(self) -> bool:
        return self.static or self.method == "gptq"

    @property
    def grid(self) -> Grid:
        group = {"tensor": 0, "channel": None, "group": self.group_size}[self.scheme.strategy]
        return Grid(self.scheme.bits, self.scheme.float, group, self.symmetric)

    def config(self, ignore: list[str]) -> dict[str, Any]:
        """The quantization_config, with all keys that llm-compressor writes. `ignore`: modules that stay plain."""
        scheme = self.scheme
        kind = "float" if scheme.float else "int"
        weights = _arguments(scheme.bits, kind, scheme.strategy, self.symmetric)
        if scheme.strategy == "group":
            weights["group_size"] = self.group_size
        inputs = None
        if scheme.activations is not None:
            inputs = _arguments(8, kind, scheme.activations, True)
            inputs |= {"dynamic": not self.static, "observer": "minmax" if self.static else None}
        group = {
            "format": scheme.layout,
            "input_activations": inputs,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": weights,
        }
        return {
            "config_groups": {"group_0": group},
            "format": scheme.layout,
            "global_compression_ratio": None,
            "ignore": ignore,
            "kv_cache_scheme": None,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "sparsity_config": {},
            "transform_config": {},
            "version": VERSION,
        }


def find_scheme(name: str) -> Scheme:
    found = SCHEMES.get(ALIASES.get(name, name))
    if found is None:
        raise ConfigError(f"--scheme must be one of {', '.join((*SCHEMES, *ALIASES))}, got {name!r:.80}")
    return found


def _arguments(bits: int, kind: str, strategy: str, symmetric: bool) -> dict[str, Any]:
    return {
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "group_size": None,
        "num_bits": bits,
        "observer": "minmax",
        "observer_kwargs": {},
        "strategy": strategy,
        "symmetric": symmetric,
        "type": kind,
    }
