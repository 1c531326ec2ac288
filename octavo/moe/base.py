"""The seam between models and the kernels of experts: what a layer of experts is, and what a backend does with it.

Legend of suffixes: T tokens, X experts, K experts of a token, E hidden, I inner size of an expert, G = 2 I.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from octavo.quant.schemes import Scheme


# softmax: over all experts; sigmoid: of each; chosen: a softmax over the logits of those that are chosen; sparsemixer:
# for each choice in turn a softmax over those of the logits left that are near the largest.
Score = Literal["softmax", "sigmoid", "chosen", "sparsemixer"]


@dataclass(frozen=True, slots=True)
class Routing:
    """How a token's logits become experts and their weights. All of it is in float32."""

    num_experts: int
    top_k: int
    score: Score = "softmax"
    renormalize: bool = False  # weights of a token add up to one, before they are scaled
    scale: float = 1.0
    groups: int = 1  # of neighbouring experts; only the best `kept_groups` are looked at
    kept_groups: int = 1
    group_best: int = 1  # a group is as good as the sum of so many of its best experts
    jitter: float = 0.0  # sparsemixer: near is within twice this share


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """What a layer asks of its experts; a backend answers with None or with the reason it cannot."""

    routing: Routing
    hidden_size: int
    inner_size: int
    activation: str  # one of octavo.layers.mlp.ACTIVATIONS, or clamped: GPT-OSS's
    dtype: torch.dtype
    device: torch.device
    bias: bool = False  # of both products
    interleaved: bool = False  # rows of gate and up alternate; else all of gate come first
    # Alpha and limit: with gate and up clamped by the limit, gate * sigmoid(alpha * gate) * (up + 1).
    clamp: tuple[float, float] = (0.0, 0.0)


@dataclass(slots=True)
class ExpertWeights:
    """Matrices of all experts, one below the other, plain or as a scheme of octavo.quant keeps them."""

    gate_up: Scheme  # [X * G, E]
    down: Scheme  # [X * E, I]
    gate_up_bias_XG: Tensor | None = None
    down_bias_XE: Tensor | None = None


class MoeBackend(Protocol):
    """Made of a layer's weights once they are loaded; it may keep them in another form.

    `stored` says which, and `nbytes` how large they are without biases.
    """

    name: str
    stored: str
    nbytes: int

    @staticmethod
    def supports(spec: MoeSpec) -> str | None:
        """None if this backend can serve the spec here, else the reason why not."""

    def __init__(self, spec: MoeSpec, weights: ExpertWeights) -> None: ...

    def __call__(self, x_TE: Tensor, logits_TX: Tensor, bias_X: Tensor | None, shared_TE: Tensor | None) -> Tensor:
        """The weighted sum of each token's experts, and of `shared_TE`. The bias is for choosing only, in float32."""
