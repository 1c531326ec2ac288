"""GPTQ (Frantar et al., 2022): columns are rounded one after the other, and what each loses the later ones make up for.

What matters is the error of products with inputs x, so each matrix comes with H, the sum of x x^T over a calibration
text. H's inverse says how much of a column's error every later column can take; its Cholesky factor has the inverses
for all steps at once. Columns are rounded by blocks: inside one each error is passed on at once, to the columns behind
it in one product.

Legend: N rows (out), K columns (in), G groups of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.errors import ModelError
from octavo.quantize.rounding import Grid, Rounded, Steps

BLOCK = 128


def gptq(
    weight_NK: Tensor, hessian_KK: Tensor, grid: Grid, dtype: torch.dtype, dampening: float, act_order: bool
) -> Rounded:
    """`dampening`: the share of H's mean diagonal that is added to it. With `act_order` columns with large inputs come
    first; steps are then those of the weights as they were, so the stored order does not change."""
    assert not grid.floating
    rows, columns = weight_NK.shape
    wide_NK = weight_NK.float().clone()
    size = grid.group or columns
    settled = grid.steps(wide_NK, dtype) if act_order or size == columns else None
    order_K = torch.arange(columns, device=wide_NK.device)
    if act_order:
        order_K = hessian_KK.diagonal().argsort(descending=True, stable=True)
        wide_NK = wide_NK[:, order_K]
    factor_KK = inverse_factor(hessian_KK[order_K][:, order_K], dampening)
    code_NK = torch.empty_like(wide_NK)
    found: list[Steps] = []
    group_of = (order_K // size).tolist()
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        error_NB = wide_NK.new_empty(rows, last - first)
        for i in range(first, last):
            if settled is not None:
                steps = settled.of(group_of[i])
            else:
                if i % size == 0:
                    found.append(grid.steps(wide_NK[:, i : i + size], dtype))
                steps = found[-1]
            value_N1 = wide_NK[:, i : i + 1]
            code_N1 = grid.codes(value_N1[..., None], steps).squeeze(-1)
            code_NK[:, i : i + 1] = code_N1
            kept_N1 = (code_N1 if steps.zero_NG is None else code_N1 - steps.zero_NG) * steps.scale_NG
            lost_N1 = (value_N1 - kept_N1) / factor_KK[i, i]
            wide_NK[:, i + 1 : last] -= lost_N1 * factor_KK[i, i + 1 : last]
            error_NB[:, i - first] = lost_N1.squeeze(1)
        wide_NK[:, last:] -= error_NB @ factor_KK[first:last, last:]
    if settled is None:
        zeros = [steps.zero_NG for steps in found if steps.zero_NG is not None]
        settled = Steps(torch.cat([steps.scale_NG for steps in found], 1), torch.cat(zeros, 1) if zeros else None)
    restored_NK = torch.empty_like(code_NK).index_copy_(1, order_K, code_NK)
    return Rounded(grid.pack(restored_NK), settled)


def inverse_factor(hessian_KK: Tensor, dampening: float) -> Tensor:
    """Upper triangular U with U^T U = (H + damping)^-1. Inputs that were always zero count as if by themselves."""
    diagonal_K = hessian_KK.diagonal()
    if not bool(torch.isfinite(diagonal_K).all()):
        raise ModelError("calibration: the model's activations on this text are not finite")
    mean = float(diagonal_K.mean()) or 1.0
    while True:
        damped_KK = hessian_KK.clone()
        damped_KK.diagonal().add_(dampening * mean)
        factor_KK, failed = torch.linalg.cholesky_ex(damped_KK)
        if not int(failed):
            upper_KK: Tensor
            upper_KK, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor_KK), upper=True)
            if not int(failed):
                return upper_KK
        dampening *= 10  # ends: a diagonal that outweighs all else has a factor
