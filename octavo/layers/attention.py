"""Self-attention of a decoder layer: projections, norms of heads, rotation. The KV cache is the backend's business.

Legend: T tokens, H query heads, K key/value heads, J = H + K, D head size, E hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from octavo import kernels
from octavo.attention.base import AttendOptions, ForwardBatch
from octavo.layers.linear import Linear, MergedLinear, QKVLinear
from octavo.layers.qk_norm import FullQKNorm, HeadLayerNorm, QKNorm
from octavo.layers.rope import Rope, Rotation

# The rotations of a pass, by the rope that gave them; None where one kernel gathers them, turns, and fills the cache.
Rotations = dict[Rope, Rotation] | None


def by_head(num_kv_heads: int, head_dim: int) -> Callable[[Tensor], Tensor]:
    """For `Attention.order`: a checkpoint has, for each key head, its queries, its key and its value."""

    def order(rows: Tensor) -> Tensor:
        heads = rows.view(num_kv_heads, -1, head_dim, *rows.shape[1:])
        return torch.cat((heads[:, :-2].flatten(0, 2), heads[:, -2].flatten(0, 1), heads[:, -1].flatten(0, 1)))

    return order


class Attention:
    """`rope` None: positions are not seen here. `norm` says how queries and keys are normed.

    `clip`: queries, keys and values stay within it. `scales_P`: what queries of each position are multiplied with.
    `order` puts the rows of `qkv`, as a checkpoint has them in one, in
    their order here: queries, keys, values.
    """

    parts: ClassVar[tuple[str, ...]] = ("q", "k", "v")  # of `qkv`, where a checkpoint has them apart

    __slots__ = (
        "clip",
        "head_dim",
        "heads",
        "joint_heads",
        "kernels",
        "layer",
        "norm",
        "o",
        "options",
        "order",
        "qkv",
        "rope",
        "scales_P",
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
        self.clip: float | None = None
        self.scales_P: Tensor | None = None
        self.order: Callable[[Tensor], Tensor] | None = None
        self.kernels = kernels.elementwise_for(device)
        self.qkv: MergedLinear = QKVLinear(hidden_size, *heads, head_dim, biases[0], dtype, device)
        self.o = Linear(heads[0] * head_dim, hidden_size, biases[1], dtype, device)

    def finish(self) -> None:
        if self.order is not None:
            self._reorder(self.order)
        self.qkv.finish()
        self.o.finish()
        if self.norm is not None:
            self.norm.finish()

    def _reorder(self, order: Callable[[Tensor], Tensor]) -> None:
        qkv = self.qkv
        if qkv.rows is None:
            qkv.weight = order(qkv.weight)
        else:
            qkv.rows = {row: scheme.map_rows(order) for row, scheme in qkv.rows.items()}
        qkv.bias = None if qkv.bias is None else order(qkv.bias)

    def __call__(self, x_TE: Tensor, rotations: Rotations, batch: ForwardBatch) -> Tensor:
        return self.mix(self.qkv(x_TE), rotations, batch)

    def mix(self, qkv: Tensor, rotations: Rotations, batch: ForwardBatch) -> Tensor:
        """What follows the first projection."""
        return self.o(self.attend(qkv, rotations, batch))

    def attend(self, qkv: Tensor, rotations: Rotations, batch: ForwardBatch) -> Tensor:
        """What lies between the two projections."""
        if self.norm is not None and not isinstance(self.norm, QKNorm):
            self.norm(qkv)
        if self.clip is not None:
            qkv = qkv.clamp_(-self.clip, self.clip)
        q_THD = self._fused(qkv, batch) if rotations is None else self._in_torch(qkv, rotations, batch)
        if self.scales_P is not None:
            q_THD = q_THD.mul_(self.scales_P.index_select(0, batch.positions_T).view(-1, 1, 1))
        return batch.attention.attend(self.layer, q_THD, batch, self.options)

    def _fused(self, qkv: Tensor, batch: ForwardBatch) -> Tensor:
        """Queries, normed and turned; keys, likewise, and values go to the cache."""
        cache = batch.attention.cache(self.layer)
        assert self.kernels is not None and cache is not None
        rope, norm = self.rope, self.norm
        q_THD: Tensor = self.kernels.rotate_and_write(
            qkv,
            None if rope is None else (rope.table_P1D, rope.half, rope.interleaved),
            batch.positions_T,
            batch.slots_T,
            cache,
            self.heads[0],
            (norm.q_D, norm.k_D, norm.eps, norm.wide, norm.late) if isinstance(norm, QKNorm) else None,
        )
        return q_THD

    def _in_torch(self, qkv: Tensor, rotations: dict[Rope, Rotation], batch: ForwardBatch) -> Tensor:
        qk_TJD, v_TKD = qkv.view(len(qkv), -1, self.head_dim).split_with_sizes(self.joint_heads, 1)
        norm = self.norm if isinstance(self.norm, QKNorm) else None
        if norm is not None and not norm.late:
            qk_TJD = norm(qk_TJD)
        if self.rope is not None:
            qk_TJD = self.rope(qk_TJD, rotations[self.rope])
        if norm is not None and norm.late:
            qk_TJD = norm(qk_TJD)
        q_THD, k_TKD = qk_TJD.split_with_sizes(self.heads, 1)
        batch.attention.write(self.layer, k_TKD, v_TKD, batch)
        return q_THD

    def linears(self) -> tuple[Linear, ...]:
        """Whose weights may be quantised."""
        return self.qkv, self.o

    def names(self, at: Mapping[str, str]) -> dict[str, Tensor]:
        """`at` has the paths of q, k and v, or of qkv where a checkpoint has them in one; of o, q_norm, k_norm."""
        found = Linear.names(self.qkv, at["qkv"]) if "qkv" in at else self.qkv.names(*(at[p] for p in self.parts))
        if self.norm is not None:
            found |= self.norm.names(at["q_norm"], at["k_norm"])
        if self.options.sinks_H is not None:
            found[at["sinks"]] = self.options.sinks_H
        return found | self.o.names(at["o"])


class GatedAttention(Attention):
    """Its output is multiplied by the sigmoid of a projection of the token's state, which is a part of `qkv`."""

    __slots__ = ()
    parts = (*Attention.parts, "attention_gate")

    def __init__(
        self,
        layer: int,
        hidden_size: int,
        heads: tuple[int, int],
        head_dim: int,
        rope: Rope | None,
        options: AttendOptions,
        biases: tuple[bool, bool],
        norm: QKNorm | FullQKNorm | HeadLayerNorm | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(layer, hidden_size, heads, head_dim, rope, options, biases, norm, dtype, device)
        queries, kept = (count * head_dim for count in heads)
        self.qkv = MergedLinear(hidden_size, (queries, kept, kept, queries), biases[0], dtype, device)

    def mix(self, qkv: Tensor, rotations: Rotations, batch: ForwardBatch) -> Tensor:
        size = self.heads[0] * self.head_dim
        inner, gate = qkv.split_with_sizes((qkv.shape[1] - size, size), 1)
        return self.o(self.attend(inner, rotations, batch) * torch.sigmoid(gate))
