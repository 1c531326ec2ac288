"""Norms of queries and keys, before they are rotated, but where one is `late`.

Legend: T tokens, H query heads, K key/value heads, J = H + K heads (queries first), D head size,
F = (H + K + K) D: what the projection gives for a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo import kernels


class QKNorm:
    """RMS norm of each query and key head over its own size; one weight for all heads of a kind.

    `wide`, `offset` and `plain` are those of `octavo.layers.norm.RMSNorm`. The kernel that rotates does this too.
    `late`: after it has rotated them.
    """

    __slots__ = ("eps", "heads", "k_D", "late", "offset", "plain", "q_D", "size", "weight_JD", "wide")

    def __init__(
        self,
        heads: tuple[int, int],  # H, K
        head_dim: int,
        eps: float,
        dtype: torch.dtype,
        device: torch.device,
        *,
        wide: bool = False,
        offset: float = 0.0,
        plain: bool = False,
        late: bool = False,
    ) -> None:
        self.plain = plain
        self.late = late
        self.q_D = torch.full((head_dim,), 1.0 - offset, dtype=dtype, device=device)
        self.k_D = self.q_D.clone()
        self.heads = heads
        self.size = (head_dim,)
        self.eps = eps
        self.wide = wide
        self.offset = offset

    def finish(self) -> None:
        if self.wide:
            self.q_D, self.k_D = self.q_D.float() + self.offset, self.k_D.float() + self.offset
        self.weight_JD = torch.cat((self.q_D.expand(self.heads[0], -1), self.k_D.expand(self.heads[1], -1)))

    def __call__(self, qk_TJD: Tensor) -> Tensor:
        if self.wide:
            return torch.rms_norm(qk_TJD.float(), self.size, None, self.eps).mul_(self.weight_JD).to(qk_TJD.dtype)
        return torch.rms_norm(qk_TJD, self.size, None, self.eps).mul_(self.weight_JD)

    def names(self, q_path: str, k_path: str) -> dict[str, Tensor]:
        return {} if self.plain else {f"{q_path}.weight": self.q_D, f"{k_path}.weight": self.k_D}


class FullQKNorm:
    """RMS norm over all query heads at once, and over all key heads: in place, before heads are told apart. Wide."""

    __slots__ = ("eps", "k", "kernels", "q")

    def __init__(
        self, heads: tuple[int, int], head_dim: int, eps: float, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.q, self.k = (torch.ones(count * head_dim, dtype=dtype, device=device) for count in heads)
        self.eps = eps
        self.kernels = kernels.elementwise_for(device)

    def finish(self) -> None:
        self.q, self.k = self.q.float(), self.k.float()

    def __call__(self, qkv_TF: Tensor) -> None:
        start = 0
        for weight in (self.q, self.k):
            part = qkv_TF[:, start : start + len(weight)]
            start += len(weight)
            if self.kernels is not None:
                self.kernels.rms_norm_(part, weight, self.eps, wide=True)
            else:
                part.copy_(torch.rms_norm(part.float(), weight.shape, weight, self.eps))

    def names(self, q_path: str, k_path: str) -> dict[str, Tensor]:
        return {f"{q_path}.weight": self.q, f"{k_path}.weight": self.k}


class HeadLayerNorm:
    """Layer norm of each head over its own size, in place; every head has weights of its own. Rounded once."""

    __slots__ = ("bias_JD", "eps", "k_KD", "q_HD", "weight_JD")

    def __init__(
        self, heads: tuple[int, int], head_dim: int, eps: float, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.q_HD, self.k_KD = (torch.ones(count, head_dim, dtype=dtype, device=device) for count in heads)
        self.bias_JD: Tensor | None = None
        self.eps = eps

    def finish(self) -> None:
        self.weight_JD = torch.cat((self.q_HD, self.k_KD)).float()

    def __call__(self, qkv_TF: Tensor) -> None:
        joint, head_dim = self.weight_JD.shape
        qk_TJD = qkv_TF.view(len(qkv_TF), -1, head_dim)[:, :joint]
        normed_TJD = torch.layer_norm(qk_TJD.float(), (head_dim,), None, None, self.eps).mul_(self.weight_JD)
        qk_TJD.copy_(normed_TJD if self.bias_JD is None else normed_TJD.add_(self.bias_JD))

    def names(self, q_path: str, k_path: str) -> dict[str, Tensor]:
        return {f"{q_path}.weight": self.q_HD, f"{k_path}.weight": self.k_KD}


class SharedLayerNorm(HeadLayerNorm):
    """The same with one weight, and one bias, for all heads of a kind."""

    __slots__ = ("counts", "k_bias_D", "q_bias_D")

    def __init__(
        self, heads: tuple[int, int], head_dim: int, eps: float, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__((1, 1), head_dim, eps, dtype, device)
        self.counts = heads
        self.q_bias_D, self.k_bias_D = torch.zeros(2, head_dim, dtype=dtype, device=device)

    def finish(self) -> None:
        queries, keys = self.counts
        self.weight_JD = torch.cat((self.q_HD.expand(queries, -1), self.k_KD.expand(keys, -1))).float()
        self.bias_JD = torch.cat((self.q_bias_D.expand(queries, -1), self.k_bias_D.expand(keys, -1))).float()

    def names(self, q_path: str, k_path: str) -> dict[str, Tensor]:
        weights = {f"{q_path}.weight": self.q_HD[0], f"{k_path}.weight": self.k_KD[0]}
        return weights | {f"{q_path}.bias": self.q_bias_D, f"{k_path}.bias": self.k_bias_D}
