"""Logprobs of the model's own distribution: before masks, penalties, temperature and truncation.

Column 0 is the token itself, the columns after it the k likeliest in order. The rank of a token is one more than the
number of likelier ones. On a GPU kernels read the logits as they are; torch needs them in float32, and takes the rows a
few at a time, so that memory stays bounded whatever k and the prompt are.

Suffixes: M positions, V vocabulary, K columns.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from octavo.core.plan import IntArray
from octavo.sampling import blocks


@dataclass(slots=True)
class DeviceLogprobs:
    """`LogprobRows` that are still on the device."""

    index_M: IntArray  # on the host: what the rows belong to
    ids_MK: Tensor  # int32
    logprobs_MK: Tensor  # float32
    ranks_M: Tensor  # int32


@functools.cache
def _kernels_for(device: torch.device) -> ModuleType | None:
    if device.type != "cuda":
        return None
    try:
        return import_module("octavo.kernels.sampling_logprobs")
    except ImportError:
        return None


def logprobs(
    logits_SV: Tensor, rows_M: Tensor | None, tokens_M: Tensor, k: int, rows_at_once: int, index_M: IntArray
) -> DeviceLogprobs:
    """Of the tokens that follow M rows of the logits, or all rows where `rows_M` is None."""
    kernels = _kernels_for(logits_SV.device)
    if kernels is not None:
        return DeviceLogprobs(index_M, *kernels.logprobs(logits_SV, rows_M, tokens_M, k))
    parts = []
    for start in range(0, len(tokens_M), rows_at_once):
        span = slice(start, start + rows_at_once)
        logits_MV = logits_SV[span] if rows_M is None else logits_SV.index_select(0, rows_M[span])
        parts.append(_some(logits_MV, tokens_M[span], k))
    ids_MK, logprobs_MK, ranks_M = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return DeviceLogprobs(index_M, ids_MK, logprobs_MK, ranks_M)


def _some(logits_MV: Tensor, tokens_M: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    logprobs_MV = torch.log_softmax(logits_MV.float(), dim=-1)
    ids_M1 = tokens_M.clamp(min=0)[:, None]  # -1: a row whose logits were not finite
    own_M1 = logprobs_MV.gather(1, ids_M1)
    ids_MK, values_MK = ids_M1, own_M1
    if k:
        top_values, top_ids = blocks.top_k(logprobs_MV, min(k, logits_MV.shape[1]))
        ids_MK, values_MK = torch.cat((ids_M1, top_ids), 1), torch.cat((own_M1, top_values), 1)
    likelier_M = blocks.sums(torch.gt(logprobs_MV, own_M1, out=torch.empty_like(logprobs_MV))).sum(-1)
    return ids_MK.int(), values_MK, likelier_M.int() + 1
