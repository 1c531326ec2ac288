"""DeepSeek's latent attention (MLA), in its absorbed form: the cache keeps one small vector a token for all heads.

A head's key is K_h c, beside a part r that positions turn and that all heads share; its value is V_h c. Since
q . (K_h c) = (K_h^T q) . c, and a weighted sum of V_h c is V_h of the weighted sum of c, attention runs over the
latents themselves, as one key/value head of rank + rope values whose first `rank` are the values.

Legend: T tokens, H heads, R rank of the latent, P rope values, N other values of a head's query, V of its value,
D = R + P, E hidden.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from octavo.attention.base import AttendOptions, ForwardBatch
from octavo.layers.attention import Rotations
from octavo.layers.linear import Linear, MergedLinear
from octavo.layers.norm import RMSNorm
from octavo.layers.rope import Rope


class LatentAttention:
    """`qkv` gives what of a token's queries and latent comes out of its hidden state, in one product."""

    __slots__ = ("k_HNR", "kv_b", "kv_norm", "layer", "o", "options", "q_b", "q_norm", "qkv", "rope", "sizes", "v_HRV")

    def __init__(
        self,
        layer: int,
        hidden_size: int,
        num_heads: int,
        sizes: tuple[int, int, int, int],  # R, P, N, V
        query_rank: int | None,
        rope: Rope,
        options: AttendOptions,
        bias: bool,
        eps: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        rank, rope_dim, nope_dim, value_dim = sizes
        self.layer = layer
        self.sizes = sizes
        self.rope = rope
        self.options = options
        queries = num_heads * (nope_dim + rope_dim)
        first = queries if query_rank is None else query_rank
        self.qkv = MergedLinear(hidden_size, (first, rank + rope_dim), bias, dtype, device)
        self.q_norm = self.q_b = None
        if query_rank is not None:
            self.q_norm = RMSNorm(query_rank, eps, dtype, device)
            self.q_b = Linear(query_rank, queries, False, dtype, device)
        self.kv_norm = RMSNorm(rank, eps, dtype, device)
        self.kv_b: Tensor | None = torch.empty(num_heads * (nope_dim + value_dim), rank, dtype=dtype, device=device)
        self.o = Linear(num_heads * value_dim, hidden_size, bias, dtype, device)

    def finish(self) -> None:
        rank, _, nope_dim, value_dim = self.sizes
        assert self.kv_b is not None
        kv_HXR = self.kv_b.view(-1, nope_dim + value_dim, rank)
        self.k_HNR = kv_HXR[:, :nope_dim].contiguous()
        self.v_HRV = kv_HXR[:, nope_dim:].transpose(1, 2).contiguous()
        self.kv_b = None
        for part in (self.qkv, self.q_norm, self.q_b, self.kv_norm, self.o):
            if part is not None:
                part.finish()

    def __call__(self, x_TE: Tensor, rotations: Rotations, batch: ForwardBatch) -> Tensor:
        return self.mix(self.qkv(x_TE), rotations, batch)

    def mix(self, qkv: Tensor, rotations: Rotations, batch: ForwardBatch) -> Tensor:
        """From the first projection's output to the attention's; the latents of the step go to the cache."""
        rank, rope_dim, nope_dim, value_dim = self.sizes
        q, latent_TD = qkv.split_with_sizes((qkv.shape[1] - rank - rope_dim, rank + rope_dim), 1)
        if self.q_norm is not None and self.q_b is not None:
            q = self.q_b(self.q_norm(q.contiguous())[0])
        q_THX = q.view(len(q), -1, nope_dim + rope_dim)
        turn = self._in_torch if rotations is not None else self._fused
        q_THD = turn(q_THX, latent_TD, rotations, batch)
        # Into their places: the products know strides.
        torch.bmm(q_THX[..., :nope_dim].transpose(0, 1), self.k_HNR, out=q_THD[..., :rank].transpose(0, 1))
        o_THR = batch.attention.attend(self.layer, q_THD, batch, self.options).view(len(q), -1, rank)
        o_THV = o_THR.new_empty(*o_THR.shape[:2], value_dim)
        torch.bmm(o_THR.transpose(0, 1), self.v_HRV, out=o_THV.transpose(0, 1))
        return self.o(o_THV.flatten(1))

    def _in_torch(self, q_THX: Tensor, latent_TD: Tensor, rotations: Rotations, batch: ForwardBatch) -> Tensor:
        """Queries [T, H, D] whose last P values are there, and turned; the latents are in the cache."""
        rank, rope_dim, nope_dim, _ = self.sizes
        assert rotations is not None
        c_TR, rest_TP = latent_TD.split_with_sizes((rank, rope_dim), 1)
        turning = torch.cat((q_THX[..., nope_dim:], rest_TP.unsqueeze(1)), 1)
        turned = self.rope(turning, rotations[self.rope])
        k_T1D = torch.cat((self.kv_norm(c_TR.contiguous())[0].unsqueeze(1), turned[:, -1:]), -1)
        batch.attention.write(self.layer, k_T1D, k_T1D, batch)
        q_THD = q_THX.new_empty(*q_THX.shape[:2], rank + rope_dim)
        q_THD[..., rank:] = turned[:, :-1]
        return q_THD

    def _fused(self, q_THX: Tensor, latent_TD: Tensor, rotations: Rotations, batch: ForwardBatch) -> Tensor:
        from octavo.kernels.latent_attention import turn_and_write

        cache = batch.attention.cache(self.layer)
        assert cache is not None
        rope = (self.rope.table_P1D, self.rope.interleaved)
        norm = (self.kv_norm.weight_E, self.kv_norm.eps)
        return turn_and_write(q_THX, latent_TD, cache[0], rope, batch.positions_T, batch.slots_T, norm)

    def linears(self) -> tuple[Linear, ...]:
        """Whose weights may be quantised."""
        return (self.qkv, self.o) if self.q_b is None else (self.qkv, self.q_b, self.o)

    def names(self, at: Mapping[str, str]) -> dict[str, Tensor]:
        assert self.kv_b is not None, "the weights have been taken apart"
        first = at["q"] if self.q_b is None else at["q_a"]
        found = self.qkv.names(first, at["kv_a"]) | self.kv_norm.names(at["kv_a_norm"])
        if self.q_norm is not None and self.q_b is not None:
            found |= self.q_norm.names(at["q_a_norm"]) | self.q_b.names(at["q_b"])
        found[f"{at['kv_b']}.weight"] = self.kv_b
        return found | self.o.names(at["o"])
