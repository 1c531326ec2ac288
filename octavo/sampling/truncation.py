"""Drawing a token under temperature, min_p, top_k and top_p, without sorting the vocabulary.

The kept tokens are those of the usual sorted reference, applied in vLLM's order: min_p (probability at least min_p
times the largest), then top_k, then top_p (the fewest tokens of what is left whose share is at least top_p). A token
as likely as the last one kept is kept too; with top_k, as many of these as there are spare candidates, at least 8.

*Without top_k* nothing is searched for. A token is drawn from all of them and tested: it is in the nucleus if the
tokens likelier than it have less than top_p of the mass. If it is not, neither is any token that is as likely or less,
so these are dropped and another is drawn: this is rejection sampling, so the distribution is exact, and the number of
rejections is at most Poisson with mean ln(1 / top_p): 0.1 at top_p 0.9. A draw is a race in two levels, over the
masses of blocks and then over the tokens of the winning block: about 2 sqrt(V) random numbers instead of V.

*With top_k* the k likeliest are found first, and everything else happens to those few, which are sorted. How many
candidates are taken depends on the row's own k, so that its ties do not depend on its neighbours.

Measured by `bench/sampler.py` on one core of a CPU with AVX-512, for a row of 32k tokens in a batch of 64: temperature
36 us, of which 18 are the softmax, with top_p 0.9 another 8 to 22, and 50 us for top_k 50; sorting takes 2.2 ms.

Suffixes: G rows, V vocabulary, B blocks of the vocabulary, K candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.sampling import blocks
from octavo.sampling.random import exponentials, later, race

_SPARE = 8  # the least number of candidates beyond k, for tokens as likely as the k-th


def candidates_for(top_k: int) -> int:
    """A power of two, so that rows with like k share a group. The common 50 is among those that need 64."""
    return 1 << (top_k + _SPARE - 1).bit_length()


def drop_below_min_p(p_GV: Tensor, min_p_G1: Tensor) -> Tensor:
    least_G1 = p_GV.amax(-1, keepdim=True) * min_p_G1
    return torch.ge(p_GV, least_G1, out=torch.empty_like(p_GV)).mul_(p_GV)


def draw(p_GV: Tensor, masses_GB: Tensor, keys_G: Tensor) -> tuple[Tensor, Tensor]:
    """A token in proportion to p, which need not sum to 1, and its p. `masses_GB` is `blocks.sums(p_GV)`."""
    num_blocks = masses_GB.shape[1]
    noise = exponentials(keys_G, torch.arange(num_blocks + blocks.BLOCK, device=p_GV.device))
    block_G = race(masses_GB, noise[:, :num_blocks])
    members = blocks.members(p_GV, block_G, 0.0)
    inner_G = race(members, noise[:, num_blocks:])
    return block_G * blocks.BLOCK + inner_G, members.gather(1, inner_G[:, None]).squeeze(1)


def draw_all(p_GV: Tensor, keys_G: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens, whether the row was not finite)."""
    masses_GB = blocks.sums(p_GV)
    return draw(p_GV, masses_GB, keys_G)[0], masses_GB.sum(-1).isnan()


def draw_nucleus(p_GV: Tensor, top_p_G: Tensor, keys_G: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens, whether the row was not finite). The host looks which rows need another draw."""
    masses_GB = blocks.sums(p_GV)
    total_G = masses_GB.sum(-1)
    limit_G = (top_p_G * total_G).clamp_(min=1e-30)  # so that the likeliest token always passes
    tokens_G, weights_G = draw(p_GV, masses_GB, keys_G)
    _redraw_few(p_GV, total_G, limit_G, keys_G, tokens_G, weights_G)
    return tokens_G, total_G.isnan()


def _redraw_few(
    p_GV: Tensor, total_G: Tensor, limit_G: Tensor, keys_G: Tensor, tokens_G: Tensor, weights_G: Tensor
) -> None:
    """Replace the tokens outside the nucleus, in place, looking at their rows only."""
    # What is likelier than a token cannot reach the limit if the token's own weight exceeds the rest.
    rows = (weights_G <= total_G - limit_G).nonzero().squeeze(1)
    left = p_GV if len(rows) == len(p_GV) else p_GV.index_select(0, rows)
    turn = 0
    while len(rows):
        turn += 1
        left = blocks.heavier(left, weights_G[rows])
        masses = blocks.sums(left)
        rejected = (masses.sum(-1) >= limit_G[rows]).nonzero().squeeze(1)
        rows, left, masses = rows[rejected], left.index_select(0, rejected), masses[rejected]
        if len(rows):
            tokens_G[rows], weights_G[rows] = draw(left, masses, later(keys_G[rows], turn))


def draw_top_k(
    logits_GV: Tensor,
    candidates: int,
    top_k_G: Tensor,
    temperature_G1: Tensor,
    min_p_G1: Tensor,
    top_p_G1: Tensor,
    keys_G: Tensor,
) -> tuple[Tensor, Tensor]:
    """(tokens, whether the row was not finite), for rows of which each has so few `candidates`."""
    values_GK, ids_GK = blocks.top_k(logits_GV, min(candidates, logits_GV.shape[1]))
    scaled_GK = (values_GK - values_GK[:, :1]) / temperature_G1
    kept_GK = values_GK >= values_GK.gather(1, top_k_G[:, None] - 1)
    kept_GK &= scaled_GK >= min_p_G1.log()
    weights_GK = scaled_GK.exp().mul_(kept_GK)
    before_GK = weights_GK.cumsum(1) - weights_GK
    limit_G1 = torch.where(top_p_G1 < 1, top_p_G1 * weights_GK.sum(1, keepdim=True), torch.inf)
    last_G1 = (before_GK < limit_G1).sum(1, keepdim=True).sub_(1).clamp_(min=0)
    weights_GK *= values_GK >= values_GK.gather(1, last_G1)
    chosen_G = race(weights_GK, exponentials(keys_G, ids_GK))
    return ids_GK.gather(1, chosen_G[:, None]).squeeze(1), blocks.not_finite(values_GK[:, 0])
