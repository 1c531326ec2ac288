"""Routing in torch: the reference of the kernel in `octavo.kernels.moe_route`.

Legend: T tokens, X experts, K experts of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.moe.base import Routing

LEAST = 1e-20  # sum of weights that is divided by


def route(logits_TX: Tensor, bias_X: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor]:
    """(weights [T, K] in float32, experts [T, K]). The bias is added to scores for choosing, not to weights."""
    logits_TX = logits_TX.float()
    if routing.score == "sparsemixer":
        return _mix_sparsely(logits_TX, routing)
    if routing.score == "softmax":
        scores_TX = logits_TX.softmax(-1)
    else:
        scores_TX = logits_TX.sigmoid() if routing.score == "sigmoid" else logits_TX
    choice_TX = scores_TX if bias_X is None else scores_TX + bias_X
    if routing.groups > 1:
        choice_TGM = choice_TX.view(len(choice_TX), routing.groups, -1)
        best_TG = choice_TGM.topk(routing.group_best, -1).values.sum(-1)
        kept_TG = torch.zeros_like(best_TG, dtype=torch.bool)
        kept_TG.scatter_(1, best_TG.topk(routing.kept_groups, -1).indices, True)
        choice_TX = choice_TGM.masked_fill(~kept_TG[..., None], -torch.inf).flatten(1)
    experts_TK = choice_TX.topk(routing.top_k, -1).indices
    weights_TK = scores_TX.gather(1, experts_TK)
    if routing.score == "chosen":
        weights_TK = weights_TK.softmax(-1)
    if routing.renormalize:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True).clamp_(min=LEAST)
    return weights_TK * routing.scale, experts_TK


def _mix_sparsely(logits_TX: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
    weights, experts, left_TX = [], [], logits_TX
    for _ in range(routing.top_k):
        top_T1, expert_T1 = left_TX.max(-1, keepdim=True)
        far_TX = (top_T1 - logits_TX) / logits_TX.abs().clamp(min=top_T1) > 2 * routing.jitter
        weights.append(1 / (left_TX - top_T1).exp().masked_fill(far_TX, 0.0).sum(-1, keepdim=True))
        experts.append(expert_T1)
        left_TX = left_TX.scatter(-1, expert_T1, -torch.inf)
    return torch.cat(weights, -1) * routing.scale, torch.cat(experts, -1)
