"""Self-attention of a decoder layer: projections, norms of heads, rotation. The KV cache is the backend's business.

Legend: T tokens, H query heads, K key/value heads, J = H + K, D head size, E hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo import kernels
from octavo.attention.base import AttendOptions, ForwardBatch
from octavo.layers.linear import Linear, QKVLinear
from octavo.layers.norm import QKNorm
from octavo.layers.rope import Rope, Rotation


class Attention:
    __slots__ = (
        "head_dim",
        "heads",
        "joint_heads",
        "kernels",
        "layer",
        "num_kv_heads",
        "o",
        "options",
        "qk_norm",
        "qkv",
        "rope",
    )

    def __init__(
        self,
        layer: int,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rope: Rope,
        window: int | None,
        qkv_bias: bool,
        o_bias: bool,
        qk_norm_eps: float | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.layer = layer
        self.head_dim = head_dim
        self.heads = (num_heads, num_kv_heads)
        self.joint_heads = (num_heads + num_kv_heads, num_kv_heads)
        self.options = AttendOptions(head_dim**-0.5, window)
        self.rope = rope
        self.kernels = kernels.elementwise_for(device)
        self.qkv = QKVLinear(hidden_size, num_heads, num_kv_heads, head_dim, qkv_bias, dtype, device)
        self.o = Linear(num_heads * head_dim, hidden_size, o_bias, dtype, device)
        self.qk_norm: QKNorm | None = None
        if qk_norm_eps is not None:
            self.qk_norm = QKNorm(num_heads, num_kv_heads, head_dim, qk_norm_eps, dtype, device)

    def finish(self) -> None:
        self.qkv.finish()
        self.o.finish()
        if self.qk_norm is not None:
            self.qk_norm.finish()

    def __call__(self, x_TE: Tensor, rotation: Rotation | None, batch: ForwardBatch) -> Tensor:
        q_THD = self._project(self.qkv(x_TE), rotation, batch)
        return self.o(batch.attention.attend(self.layer, q_THD, batch, self.options))

    def _project(self, qkv: Tensor, rotation: Rotation | None, batch: ForwardBatch) -> Tensor:
        """Queries, normed and turned; keys, likewise, and values go to the cache."""
        if rotation is None:
            assert self.kernels is not None and (cache := batch.attention.cache(self.layer)) is not None
            norm = None if self.qk_norm is None else (self.qk_norm.q_D, self.qk_norm.k_D, self.qk_norm.eps)
            q_THD: Tensor = self.kernels.rotate_and_write(
                qkv,
                self.rope.table_P1D,
                self.rope.half,
                batch.positions_T,
                batch.slots_T,
                cache,
                self.heads[0],
                norm,
            )
            return q_THD
        qk_TJD, v_TKD = qkv.view(len(qkv), -1, self.head_dim).split_with_sizes(self.joint_heads, 1)
        if self.qk_norm is not None:
            qk_TJD = self.qk_norm(qk_TJD)
        q_THD, k_TKD = self.rope(qk_TJD, rotation).split_with_sizes(self.heads, 1)
        batch.attention.write(self.layer, k_TKD, v_TKD, batch)
        return q_THD
