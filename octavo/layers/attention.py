"""Self-attention of a decoder layer: projections, norms of heads, rotation. The KV cache is the backend's business.

Legend: T tokens, H query heads, K key/value heads, J = H + K, D head size, E hidden.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from octavo import kernels
from octavo.attention.base import AttendOptions, ForwardBatch
from octavo.layers.linear import Linear, QKVLinear
from octavo.layers.qk_norm import FullQKNorm, HeadLayerNorm, QKNorm
from octavo.layers.rope import Rope, Rotation

# The rotations of a pass, by the rope that gave them; None where one kernel gathers them, turns, and fills the cache.
Rotations = dict[Rope, Rotation] | None


class Attention:
    """`rope` None: positions are not seen here. `norm` says how queries and keys are normed."""

    __slots__ = (
        "head_dim",
        "heads",
        "joint_heads",
        "kernels",
        "layer",
        "norm",
        "o",
        "options",
        "qkv",
        "rope",
    )

    def __init__(
        self,
        layer: int,
        hidden_size: int,
        heads: tuple[int, int],  # H, K
        head_dim: int,
        rope: Rope | None,
        options: AttendOptions,
        biases: tuple[bool, bool],  # of queries, keys and values; of the output
        norm: QKNorm | FullQKNorm | HeadLayerNorm | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.layer = layer
        self.head_dim = head_dim
        self.heads = heads
        self.joint_heads = (sum(heads), heads[1])
        self.options = options
        self.rope = rope
        self.norm = norm
        self.kernels = kernels.elementwise_for(device)
        self.qkv = QKVLinear(hidden_size, *heads, head_dim, biases[0], dtype, device)
        self.o = Linear(heads[0] * head_dim, hidden_size, biases[1], dtype, device)

    def finish(self) -> None:
        self.qkv.finish()
        self.o.finish()
        if self.norm is not None:
            self.norm.finish()

    def __call__(self, x_TE: Tensor, rotations: Rotations, batch: ForwardBatch) -> Tensor:
        return self.mix(self.qkv(x_TE), rotations, batch)

    def mix(self, qkv: Tensor, rotations: Rotations, batch: ForwardBatch) -> Tensor:
        """What follows the first projection."""
        if self.norm is not None and not isinstance(self.norm, QKNorm):
            self.norm(qkv)
        q_THD = self._fused(qkv, batch) if rotations is None else self._in_torch(qkv, rotations, batch)
        return self.o(batch.attention.attend(self.layer, q_THD, batch, self.options))

    def _fused(self, qkv: Tensor, batch: ForwardBatch) -> Tensor:
        """Queries, normed and turned; keys, likewise, and values go to the cache."""
        assert self.kernels is not None and (cache := batch.attention.cache(self.layer)) is not None
        rope, norm = self.rope, self.norm
        q_THD: Tensor = self.kernels.rotate_and_write(
            qkv,
            None if rope is None else (rope.table_P1D, rope.half, rope.interleaved),
            batch.positions_T,
            batch.slots_T,
            cache,
            self.heads[0],
            (norm.q_D, norm.k_D, norm.eps, norm.wide) if isinstance(norm, QKNorm) else None,
        )
        return q_THD

    def _in_torch(self, qkv: Tensor, rotations: dict[Rope, Rotation], batch: ForwardBatch) -> Tensor:
        qk_TJD, v_TKD = qkv.view(len(qkv), -1, self.head_dim).split_with_sizes(self.joint_heads, 1)
        if isinstance(self.norm, QKNorm):
            qk_TJD = self.norm(qk_TJD)
        if self.rope is not None:
            qk_TJD = self.rope(qk_TJD, rotations[self.rope])
        q_THD, k_TKD = qk_TJD.split_with_sizes(self.heads, 1)
        batch.attention.write(self.layer, k_TKD, v_TKD, batch)
        return q_THD

    def linears(self) -> tuple[Linear, ...]:
        """Whose weights may be quantised."""
        return self.qkv, self.o

    def names(self, at: Mapping[str, str]) -> dict[str, Tensor]:
        """`at` has the paths of q, k and v, or of qkv where a checkpoint has them in one; of o, q_norm, k_norm."""
        found = Linear.names(self.qkv, at["qkv"]) if "qkv" in at else self.qkv.names(at["q"], at["k"], at["v"])
        if self.norm is not None:
            found |= self.norm.names(at["q_norm"], at["k_norm"])
        return found | self.o.names(at["o"])
