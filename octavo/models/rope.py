"""What a model's config says about rotary position embedding, and the frequencies that follow from it.

All scalings of transformers' common set are covered: default, linear, dynamic, yarn, llama3, longrope, each over
the whole head or a part of it. Frequencies are computed in float32 with the same expressions, because at position
100,000 a last-bit difference of a frequency already turns the angle.

Two scalings depend on the length of a sequence in transformers: dynamic NTK and longrope. Keys in a paged cache
are rotated once and shared between requests, so here one choice is made for the life of the engine, by the longest
sequence that it serves (`max_len`):

- dynamic: up to the model's `max_position_embeddings` the frequencies are unscaled, exactly as in transformers;
  beyond, all sequences use the base that transformers would use for a prompt of `max_len` tokens.
- longrope: `short_factor` if `max_len` fits in the original context, else `long_factor`, for all sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from octavo.models.config import ConfigReader

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
_OLD_NAMES = {"su": "longrope"}  # Phi-3's first configs


@dataclass(frozen=True, slots=True)
class RopeSpec:
    kind: str
    theta: float
    rotary_dim: int  # the first sizes of a head that are rotated
    max_position: int  # the model's max_position_embeddings
    original_max_position: int  # the context before it was extended
    factor: float = 1.0
    attention_factor: float = 1.0  # what cos and sin are multiplied by
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    interleaved: bool = False  # pairs are neighbours; else their halves of what is rotated

    @classmethod
    def from_config(cls, config: ConfigReader, head_dim: int, max_position: int) -> RopeSpec:
        """Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
        scaling = rope_section(config)
        kind = scaling.text("rope_type" if scaling.has("rope_type") else "type", "default")
        kind = _OLD_NAMES.get(kind, kind)
        if kind not in KINDS:
            raise scaling.error("rope_type", f"must be one of {', '.join(KINDS)}, got {kind!r:.80}")
        if any(type(value) is dict for value in scaling.values.values()):
            raise config.error("rope_parameters", "differs by kind of layer, which is not supported here")
        theta = (scaling if scaling.has("rope_theta") else config).number("rope_theta", 10000.0, low=1.0)
        source = scaling if scaling.has("partial_rotary_factor") else config
        rotary_dim = int(head_dim * source.number("partial_rotary_factor", 1.0, high=1.0))
        if rotary_dim < 4 or rotary_dim % 2:
            raise config.error(
                "partial_rotary_factor", f"leaves {rotary_dim} of a head to rotate: not an even number >= 4"
            )
        source = config if config.has("original_max_position_embeddings") else scaling
        original = source.integer("original_max_position_embeddings", max_position, low=2, high=2**30)
        spec = cls(kind, theta, rotary_dim, max_position, original)
        return spec._scaled(scaling) if kind != "default" else spec

    @classmethod
    def interleaved_from(cls, config: ConfigReader, head_dim: int, max_position: int) -> RopeSpec:
        """Like `from_config`, for families whose pairs are neighbours."""
        return replace(cls.from_config(config, head_dim, max_position), interleaved=True)

    def _scaled(self, scaling: ConfigReader) -> RopeSpec:
        ratio = self.max_position / self.original_max_position
        factor = scaling.number("factor", ratio) if self.kind in ("yarn", "longrope") else scaling.number("factor")
        if self.kind == "llama3":
            low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
            if high <= low:
                raise scaling.error("high_freq_factor", f"must be more than low_freq_factor ({low:g}), got {high:g}")
            return replace(self, factor=factor, low_freq_factor=low, high_freq_factor=high)
        if self.kind == "yarn":
            return replace(
                self,
                factor=factor,
                attention_factor=_yarn_attention_factor(scaling, factor),
                beta_fast=scaling.number("beta_fast", 32.0),
                beta_slow=scaling.number("beta_slow", 1.0),
                truncate=scaling.flag("truncate", True),
            )
        if self.kind == "longrope":
            grown = math.sqrt(1 + math.log(factor) / math.log(self.original_max_position)) if factor > 1 else 1.0
            return replace(
                self,
                factor=factor,
                attention_factor=scaling.number("attention_factor", grown),
                short_factor=scaling.numbers("short_factor", self.rotary_dim // 2),
                long_factor=scaling.numbers("long_factor", self.rotary_dim // 2),
            )
        return replace(self, factor=factor)

    def frequencies(self, max_len: int) -> Tensor:
        """The angle that a position adds to each rotated pair: float32 [rotary_dim / 2]. `max_len`: see the module."""
        import torch

        dim = self.rotary_dim
        theta = self.theta
        if self.kind == "dynamic":
            grown = self.factor * max(max_len, self.max_position) / self.max_position - (self.factor - 1)
            theta *= grown ** (dim / (dim - 2))
        wavelengths = theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)  # in positions, over 2 pi
        if self.kind == "longrope":
            factors = self.long_factor if max_len > self.original_max_position else self.short_factor
            return 1.0 / (torch.tensor(factors, dtype=torch.float32) * wavelengths)
        if self.kind == "yarn":
            return self._yarn(wavelengths)
        if self.kind == "llama3":
            return self._llama3(1.0 / wavelengths)
        return 1.0 / wavelengths / self.factor if self.kind == "linear" else 1.0 / wavelengths

    def _yarn(self, wavelengths: Tensor) -> Tensor:
        """Pairs that turn often in the original context stay as they are, slow ones are stretched, a ramp between."""
        import torch

        low, high = (self._pair_turning(turns) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.rotary_dim - 1)
        if low == high:
            high += 0.001  # a step instead of a division by zero
        stretched = torch.clamp((torch.arange(self.rotary_dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
        kept = 1 - stretched
        return 1.0 / (self.factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept

    def _pair_turning(self, turns: float) -> float:
        """The (fractional) index of the pair that makes so many turns in the original context."""
        return (
            self.rotary_dim * math.log(self.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(self.theta))
        )

    def _llama3(self, frequencies: Tensor) -> Tensor:
        """Like yarn, with the ramp between two wavelengths."""
        import torch

        wavelengths = 2 * math.pi / frequencies
        turns = self.original_max_position / wavelengths
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        ramp = (1 - kept) * frequencies / self.factor + kept * frequencies
        slow = wavelengths > self.original_max_position / self.low_freq_factor
        fast = wavelengths < self.original_max_position / self.high_freq_factor
        return torch.where(slow, frequencies / self.factor, torch.where(fast, frequencies, ramp))


def rope_section(config: ConfigReader) -> ConfigReader:
    """`rope_scaling` where there is one, as before transformers 5, else `rope_parameters`."""
    return config.section("rope_scaling" if config.values.get("rope_scaling") else "rope_parameters")


def config_of_kind(config: ConfigReader, kind: str, theta: float) -> ConfigReader:
    """The config as layers of one kind read it, where ropes differ by kind; `theta` is their default.

    transformers 5 has an object for each kind in `rope_parameters`; before, `rope_scaling` was of full attention.
    """
    parameters = config.section("rope_parameters")
    if any(type(value) is dict for value in parameters.values.values()):
        found = parameters.section(kind)
    else:
        found = config.section("rope_scaling") if kind == "full_attention" else ConfigReader({}, config.where)
    rope = {"rope_scaling": None, "rope_parameters": {"rope_theta": theta, **found.values}}
    return ConfigReader({**config.values, **rope}, config.where, config.names)


def _yarn_attention_factor(scaling: ConfigReader, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    above, below = scaling.raw("mscale", 0), scaling.raw("mscale_all_dim", 0)
    inferred = mscale(1.0)
    if above and below:  # DeepSeek's way to say it; zero is as good as absent
        inferred = mscale(scaling.number("mscale")) / mscale(scaling.number("mscale_all_dim"))
    return scaling.number("attention_factor", inferred)
