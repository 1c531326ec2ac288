"""Attention over whole prompts in plain torch, for CPUs: nothing is kept from one step to the next.

A layer's keys and values are those of the step (`write`), until the layer has attended. Sequences of similar length are
computed together: what is padded is at most an eighth of them. With causal attention padding needs no mask, since it
comes last.

Legend: T tokens, N sequences of a group, L tokens of the longest, H query heads, K key/value heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from octavo.attention.base import AttendOptions, AttentionSpec, ForwardBatch

WASTE = 8  # padding of a group is at most this part of its tokens,
LEAST_WASTE = 64  # or so many: another group costs more
PIECE = 128  # queries of a windowed layer at a time, with the keys that one of them sees


class _Group:
    """Sequences that are computed together: the rows that they have in the step, and how to get back there."""

    def __init__(self, starts_N: np.ndarray, lengths_N: np.ndarray) -> None:
        self.number, self.longest = len(lengths_N), int(lengths_N.max())
        place_L = np.arange(self.longest)
        there_NL = place_L < lengths_N[:, None]
        rows_NL = starts_N[:, None] + np.minimum(place_L, lengths_N[:, None] - 1)
        self.even = bool(there_NL.all())
        self.first: int | None = None  # of rows that lie in a row and need not be collected
        if self.even and np.array_equal(rows_NL.reshape(-1), np.arange(rows_NL.size) + rows_NL[0, 0]):
            self.first = int(rows_NL[0, 0])
        self.rows_R = torch.from_numpy(rows_NL.reshape(-1))
        self.kept_R = torch.from_numpy(np.flatnonzero(there_NL))
        self.own_R = self.rows_R[self.kept_R]
        self.padding_N11L = torch.from_numpy(~there_NL)[:, None, None]

    def collect(self, x_TJD: Tensor) -> Tensor:
        """As [N, J, L, D]."""
        if self.first is not None:
            rows = x_TJD.narrow(0, self.first, len(self.rows_R))
        else:
            rows = x_TJD.index_select(0, self.rows_R)
        return rows.view(self.number, self.longest, *x_TJD.shape[1:]).transpose(1, 2)

    def put(self, x_NHLD: Tensor, out_TX: Tensor) -> None:
        rows_RX = x_NHLD.transpose(1, 2).reshape(len(self.rows_R), -1)
        if self.first is not None:
            out_TX.narrow(0, self.first, len(rows_RX)).copy_(rows_RX)
        else:
            out_TX.index_copy_(0, self.own_R, rows_RX if self.even else rows_RX.index_select(0, self.kept_R))


@dataclass(slots=True)
class _Plan:
    groups: list[_Group]
    own: tuple[Tensor, Tensor] | None = None  # keys and values of the layer that is computed
    masks: dict[tuple[int, bool, int | None], Tensor | None] = field(default_factory=dict)


class TorchVarlen:
    name = "torch, whole prompts"
    graph_safe = False

    @staticmethod
    def supports(spec: AttentionSpec) -> str | None:
        if spec.device.type != "cpu":
            return f"it is made for CPUs, not {spec.device.type}"
        if spec.latent_dim:
            return "it cannot read latents"
        if spec.sinks or spec.slopes or spec.chunked:
            return "it knows no sinks, slopes or chunks"
        return None

    def __init__(self, spec: AttentionSpec, num_blocks: int = 0) -> None:
        self.spec = spec

    def plan(self, batch: ForwardBatch) -> None:
        lengths_N = np.array(batch.query_lens)
        starts_N = np.cumsum(lengths_N) - lengths_N
        order_N = np.argsort(-lengths_N, kind="stable")
        cuts, tokens, padding, longest = [], 0, 0, 0
        for i, length in enumerate(lengths_N[order_N].tolist()):
            padding += longest - length if tokens else 0
            if not tokens or padding > max(LEAST_WASTE, tokens // WASTE):
                cuts.append(i)
                tokens, padding, longest = 0, 0, length
            tokens += length
        parts = [np.sort(part) for part in np.split(order_N, cuts[1:])]
        batch.plan = _Plan([_Group(starts_N[part], lengths_N[part]) for part in parts])

    def cache(self, layer: int) -> None:
        """There is none."""

    def write(self, layer: int, k_TKD: Tensor, v_TKD: Tensor, batch: ForwardBatch) -> None:
        batch.plan.own = (k_TKD, v_TKD)

    def attend(self, layer: int, q_THD: Tensor, batch: ForwardBatch, options: AttendOptions) -> Tensor:
        plan: _Plan = batch.plan
        assert plan.own is not None, "attention without keys"
        out_TX = q_THD.new_empty(len(q_THD), q_THD.shape[1] * q_THD.shape[2])
        for index, group in enumerate(plan.groups):
            q_NHLD, k_NKLD, v_NKLD = (group.collect(x) for x in (q_THD, *plan.own))
            window = options.window if options.window is not None and options.window < group.longest else None
            if window is not None:
                o_NHLD = _windowed(q_NHLD, k_NKLD, v_NKLD, group, options, window)
            else:
                mask = _mask(group, plan, index, options)
                o_NHLD = _mix(q_NHLD, k_NKLD, v_NKLD, mask, options)
            group.put(o_NHLD, out_TX)
        plan.own = None
        return out_TX

    def poison(self, blocks_P: Tensor) -> None:
        """There are no blocks."""

    def copy_blocks(self, src_P: Tensor, dst_P: Tensor) -> None:
        """Likewise."""


def _mask(group: _Group, plan: _Plan, index: int, options: AttendOptions) -> Tensor | None:
    """What is added to scores of a group without a window; None for nothing, or what torch's causal mode does."""
    if (group.even or options.causal) and not (options.causal and options.softcap is not None):
        return None
    key = (index, options.causal, None)
    if key not in plan.masks:
        hidden = group.padding_N11L
        if options.causal:
            place_L = torch.arange(group.longest)
            hidden = place_L > place_L[:, None]
        plan.masks[key] = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
    return plan.masks[key]


def _windowed(q: Tensor, k: Tensor, v: Tensor, group: _Group, options: AttendOptions, window: int) -> Tensor:
    """Piece by piece: no mask of all queries and keys is ever made."""
    out = torch.empty_like(q)
    for done in range(0, group.longest, PIECE):
        end = min(done + PIECE, group.longest)
        begin, last = max(0, done - window + 1), end if options.causal else min(end + window - 1, group.longest)
        query_Q1, key_L = torch.arange(done, end)[:, None], torch.arange(begin, last)
        hidden = key_L <= query_Q1 - window
        hidden |= key_L > query_Q1 if options.causal else key_L >= query_Q1 + window
        if not (options.causal or group.even):
            hidden = hidden | group.padding_N11L[..., begin:last]
            # A padded query may see nothing: what it gets is thrown away, but must not be slow or no number.
            hidden &= ~hidden.all(-1, keepdim=True)
        mask = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        part = _mix(q[:, :, done:end], k[:, :, begin:last], v[:, :, begin:last], mask, options)
        out[:, :, done:end] = part
    return out


def _mix(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: AttendOptions) -> Tensor:
    """Attention over [N, H, L, D] and [N, K, L, D]."""
    if options.softcap is None:
        causal = options.causal and mask is None
        grouped = q.shape[1] != k.shape[1]
        mask = None if mask is None else mask.to(q.dtype)
        return scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=options.scale, enable_gqa=grouped)
    k, v = (x.float().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = (q.float() @ k.mT).mul_(options.scale / options.softcap).tanh_().mul_(options.softcap)
    if mask is not None:
        scores += mask
    return (scores.softmax(-1) @ v).to(q.dtype)
