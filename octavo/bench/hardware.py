"""What a step has to move and to compute, and what a device could do at best.

Shares are of what the fastest copy and the largest matrix product reach, where somebody has measured it, else of the
data sheet, of which about 90 % and 80 % can be had. `--device-bandwidth` and `--device-flops` replace them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from octavo.models.spec import ModelSpec


class Ceiling(NamedTuple):
    part: str  # of a device's name
    memory: float  # GiB that CUDA counts
    bandwidth: float  # bytes a second
    flops: float  # 16-bit operations a second in matrix products


# The first that fits a name counts.
CEILINGS = (
    Ceiling("GH200", 94.5, 4.0e12, 989e12),
    Ceiling("H200", 139.8, 4.3e12, 780e12),  # measured
    Ceiling("H100 PCIe", 79.2, 2.0e12, 756e12),
    Ceiling("H100 NVL", 93.1, 3.9e12, 835e12),
    Ceiling("H100", 79.2, 3.35e12, 989e12),
    Ceiling("GB200", 184.0, 8.0e12, 2500e12),
    Ceiling("B200", 178.4, 8.0e12, 2250e12),
    Ceiling("A100-SXM4-80GB", 79.2, 2.04e12, 312e12),
    Ceiling("A100 80GB", 79.2, 1.94e12, 312e12),
    Ceiling("A100", 39.4, 1.56e12, 312e12),
    Ceiling("L40S", 44.4, 0.864e12, 362e12),
    Ceiling("L4", 22.0, 0.3e12, 121e12),
    Ceiling("A10", 22.0, 0.6e12, 125e12),
    Ceiling("RTX 5090", 31.4, 1.79e12, 210e12),
    Ceiling("RTX 4090", 23.5, 1.01e12, 165e12),
    Ceiling("RTX 3090", 23.6, 0.936e12, 71e12),
    Ceiling("MI300X", 191.5, 5.3e12, 1307e12),
)


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    bandwidth: float | None  # bytes a second; None: unknown
    flops: float | None
    memory: int | None = None  # bytes

    @classmethod
    def find(cls, name: str, bandwidth: float | None = None, flops: float | None = None) -> Device:
        """By its name; what is given here replaces what the table says."""
        known = next((ceiling for ceiling in CEILINGS if ceiling.part.lower() in name.lower()), None)
        if known is None:
            return cls(name, bandwidth, flops)
        return cls(name, bandwidth or known.bandwidth, flops or known.flops, int(known.memory * 2**30))


@dataclass(frozen=True, slots=True)
class Use:
    """Bytes and operations over some time, beside what the device could do."""

    moved: float
    flops: float
    seconds: float
    device: Device

    def record(self) -> dict[str, Any]:
        """For JSON; shares are None where the device is unknown."""
        bandwidth, rate = self.moved / self.seconds, self.flops / self.seconds
        return {
            "bytes_moved": self.moved,
            "bandwidth": bandwidth,
            "bandwidth_share": self.device.bandwidth and bandwidth / self.device.bandwidth,
            "flops": self.flops,
            "flop_rate": rate,
            "flop_share": self.device.flops and rate / self.device.flops,
        }

    def lines(self) -> list[str]:
        bandwidth, rate = self.moved / self.seconds, self.flops / self.seconds
        return [
            f"Bandwidth use: {scaled(bandwidth, 'B/s')}{_share(bandwidth, self.device.bandwidth, 'B/s')}, "
            f"{scaled(self.moved, 'B')} moved",
            f"Matrix-rate use: {scaled(rate, 'FLOP/s')}{_share(rate, self.device.flops, 'FLOP/s')}, "
            f"{scaled(self.flops, 'FLOP')} computed",
        ]


def scaled(value: float, unit: str) -> str:
    """3.2e12 as 3.20 T."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.2f} {prefix}{unit}"
    return f"{value / 1e3:.2f} k{unit}"


def _share(rate: float, ceiling: float | None, unit: str) -> str:
    return "" if ceiling is None else f" ({rate / ceiling:.1%} of {scaled(ceiling, unit)})"


Ints = npt.NDArray[np.int64]


class Cost:
    """Bytes and operations that a step cannot do without.

    Bytes: each weight once (the head only if a token is sampled, of the embedding only what is looked up, which is
    left out; of experts as many as tokens would choose by lot), the keys and values of each context once a layer, those
    of new tokens written. Operations: two for each weight and token, and attention's. Activations count for nothing: a
    perfect kernel would not write them.

    `weight_bytes` and `itemsize` are those of the model as it runs, `kv_itemsize` of the cache, `expert_size` of a
    weight of experts, where these are not as large as others.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weight_bytes: int,
        itemsize: int,
        kv_itemsize: float | None = None,
        expert_size: float | None = None,
    ) -> None:
        embedding = spec.vocab_size * spec.hidden_size
        everywhere, expert = _parameters(spec)
        experts = spec.experts
        self.num_layers = spec.num_layers
        self.windows = Counter(spec.windows)
        self.head_bytes = embedding * itemsize
        self.layer_bytes = weight_bytes - self.head_bytes * (1 if spec.tie_embeddings else 2)
        self.head_flops = 2 * embedding
        self.num_experts, self.top_k = (experts.routing.num_experts, experts.routing.top_k) if experts else (0, 0)
        all_experts = expert * self.num_experts
        self.expert_bytes = (  # of all of them
            self.layer_bytes * all_experts // (everywhere + all_experts)
            if expert_size is None
            else int(all_experts * expert_size)
        )
        self.token_flops = 2 * (everywhere + expert * self.top_k)
        value_dim = spec.head_dim if spec.latent is None else spec.latent.rank
        kept = spec.head_dim if spec.latent is not None else 2 * spec.num_kv_heads * spec.head_dim
        self.kv_bytes = int(kept * (kv_itemsize or itemsize))  # of a token in a layer
        self.score_flops = 2 * spec.num_heads * (spec.head_dim + value_dim)  # of a query and a token that it sees

    @classmethod
    def of_folder(
        cls,
        folder: Path,
        itemsize: int | None = None,
        kv_itemsize: float | None = None,
        *,
        overrides: Mapping[str, Any] | None = None,
        weight_size: float | None = None,
        expert_size: float | None = None,
    ) -> Cost:
        """As its config.json says: a model with one type for its weights, of so many bytes if it is given; those of
        layers that may be quantised take `weight_size` bytes each, and those of experts `expert_size`."""
        from octavo.models.spec import ModelSpec

        spec = ModelSpec.from_folder(folder, overrides)
        itemsize = itemsize or (4 if spec.dtype == "float32" else 2)
        linear, experts = _quantisable(spec)
        saved = linear * (itemsize - (itemsize if weight_size is None else weight_size))
        expert_size = itemsize if expert_size is None else expert_size
        saved += experts * (itemsize - expert_size)
        return cls(spec, parameters(spec) * itemsize - int(saved), itemsize, kv_itemsize, expert_size)

    def step(self, starts_N: npt.NDArray[Any], counts_N: npt.NDArray[Any], sampled: int) -> tuple[int, int]:
        """(bytes, operations) of a step in which rows compute `counts_N` tokens after `starts_N` others."""
        moved, flops = self.matrices(int(counts_N.sum()), sampled)
        more_moved, more_flops = self.attention(starts_N, counts_N)
        return moved + more_moved, flops + more_flops

    def matrices(self, tokens: int, sampled: int) -> tuple[int, int]:
        """(bytes, operations) of a step's matrix products."""
        moved = self.touched(tokens) + (self.head_bytes if sampled else 0)
        return moved, tokens * self.token_flops + sampled * self.head_flops

    def touched(self, tokens: float) -> int:
        """Bytes of the layers' weights that so many tokens need."""
        if not self.num_experts:
            return self.layer_bytes
        missed = (1 - self.top_k / self.num_experts) ** tokens  # a share of the experts
        return self.layer_bytes - int(self.expert_bytes * missed)

    def attention(self, starts_N: npt.NDArray[Any], counts_N: npt.NDArray[Any]) -> tuple[int, int]:
        """(bytes, operations) of a step's attention."""
        starts_N, counts_N = starts_N.astype(np.int64), counts_N.astype(np.int64)
        moved, flops = self.num_layers * int(counts_N.sum()) * self.kv_bytes, 0
        for window, layers in self.windows.items():
            read, seen = attended(starts_N, counts_N, window)
            moved += layers * read * self.kv_bytes
            flops += layers * seen * self.score_flops
        return moved, flops

    def requests(
        self,
        cached_N: npt.NDArray[Any],
        prompts_N: npt.NDArray[Any],
        outputs_N: npt.NDArray[Any],
        steps: int,
    ) -> tuple[int, int]:
        """(bytes, operations) of whole requests that ran in so many steps, each prompt in one of them.

        `cached_N` tokens of the prompts were not computed.
        """
        later_N = outputs_N - 1  # tokens that were fed back
        computed = int((prompts_N - cached_N + later_N).sum())
        moved = steps * (self.touched(computed / steps) + self.head_bytes) + self.num_layers * computed * self.kv_bytes
        flops = computed * self.token_flops + int(outputs_N.sum()) * self.head_flops
        for window, layers in self.windows.items():
            read, seen = attended(cached_N, prompts_N - cached_N, window)
            _, decoded = attended(prompts_N, later_N, window)  # a step with one query reads what it sees
            moved += layers * (read + decoded) * self.kv_bytes
            flops += layers * (seen + decoded) * self.score_flops
        return moved, flops


def _parameters(spec: ModelSpec) -> tuple[int, int]:
    """(those of all layers that every token needs, those of one expert in each layer that has experts)."""
    hidden, experts = spec.hidden_size, spec.experts
    matrices = 3 if spec.gated else 2
    if spec.latent is None:
        attention = hidden * spec.head_dim * (2 * spec.num_heads + 2 * spec.num_kv_heads)
    else:
        latent = spec.latent
        queries = spec.num_heads * (latent.nope_dim + latent.rope_dim)
        rank = latent.query_rank
        attention = hidden * queries if rank is None else rank * (hidden + queries)
        attention += hidden * (latent.rank + latent.rope_dim) + spec.num_heads * latent.value_dim * hidden
        attention += spec.num_heads * (latent.nope_dim + latent.value_dim) * latent.rank
    mlp = matrices * hidden * spec.intermediate_size
    if experts is None:
        return spec.num_layers * (attention + mlp), 0
    count = sum(experts.layers)
    beside = hidden * (experts.routing.num_experts + matrices * experts.shared_size)
    everywhere = spec.num_layers * attention + (spec.num_layers - count) * mlp + count * beside
    return everywhere, count * matrices * hidden * experts.inner_size


def parameters(spec: ModelSpec) -> int:
    """Of matrices and tables."""
    everywhere, expert = _parameters(spec)
    tables = spec.vocab_size * spec.hidden_size * (1 if spec.tie_embeddings else 2)
    return everywhere + tables + (expert * spec.experts.routing.num_experts if spec.experts else 0)


def _quantisable(spec: ModelSpec) -> tuple[int, int]:
    """(of linear layers, of experts): not routers, tables, and what latent attention multiplies into others."""
    everywhere, expert = _parameters(spec)
    if spec.latent is not None:
        latent = spec.latent
        everywhere -= spec.num_layers * spec.num_heads * (latent.nope_dim + latent.value_dim) * latent.rank
    if spec.experts is None:
        return everywhere, 0
    count = spec.experts.routing.num_experts
    return everywhere - sum(spec.experts.layers) * spec.hidden_size * count, expert * count


def attended(starts_N: Ints, counts_N: Ints, window: int | None) -> tuple[int, int]:
    """(tokens whose keys are read, pairs of a query and a token that it sees) of causal attention."""
    ends_N = starts_N + counts_N
    if window is None:
        return int(ends_N.sum()), int((counts_N * starts_N + counts_N * (counts_N + 1) // 2).sum())
    # Queries before the window is full see one token more than the query before them; all others see the window.
    growing_N = np.clip(window - starts_N, 0, counts_N)
    seen_N = growing_N * starts_N + growing_N * (growing_N + 1) // 2 + (counts_N - growing_N) * window
    return int(np.minimum(ends_N, counts_N + window - 1).sum()), int(seen_N.sum())
