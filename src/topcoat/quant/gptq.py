"""GPTQ rounding: what one column's rounding does to the outputs is made good by the columns that follow.

For a linear with inputs x and H = sum x xᵀ, column i of W is rounded to q_i, and the error moves on:
e = (w_i - q_i) / U_ii,  W_j -= e U_ij for j > i,  with U the upper Cholesky factor of the damped H's inverse. Scale and
low of a group are found when its first column is reached, of the weights as they stand then. The result is stored as
any other weight of its format: only which way a weight was rounded differs.

Frantar et al. 2022, arXiv:2210.17323, algorithm 1, with groups as in their code. A column whose input was always zero
says nothing about H; it is rounded to the nearest level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topcoat.errors import TopcoatError
from topcoat.quant.base import QuantizedWeight, check_weight, require_finite
from topcoat.quant.bits import pack_bits
from topcoat.quant.gptq_integers import GptqIntegers
from topcoat.quant.grouped import Grouped

DAMPING = 0.01
"""Of the mean of H's diagonal, added to the diagonal."""
BLOCK = 128
"""Columns whose errors move on to those behind them in one product."""


def gptq(weight: Tensor, hessian: Tensor, format: Grouped | GptqIntegers, damping: float = DAMPING) -> QuantizedWeight:
    """weight (O, I) and hessian (I, I), the sum of x xᵀ over calibration inputs x (I,) -> the weight in `format`.

    Raises:
        TopcoatError: the weight does not fit the format, or the hessian is not of its inputs or not finite.
    """
    values = check_weight(weight)
    rows, columns = values.shape
    format.check_shape(rows, columns)
    require_finite(values.abs().amax(1), values)
    factor = _upper(_checked(hessian, columns), damping)  # (I, I)
    size, bits = format.group_size(columns), format.bits
    left = values.float().T.contiguous()  # (I, O): columns of W not rounded yet, errors of the others taken in
    codes = torch.empty(columns, rows, device=values.device)
    fitted = []
    for first in range(0, columns, size):
        last = first + size
        fitted.append(format.fit(left[first:last].T[:, None].contiguous()))
        wide, base = (level[:, 0] for level in format.levels(*fitted[-1]))  # (O,) each
        step = wide.where(wide > 0, torch.inf)  # a group of one value has no steps: every code is 0
        for start in range(first, last, BLOCK):
            stop = min(start + BLOCK, last)
            errors = torch.empty(stop - start, rows, device=values.device)
            for i in range(start, stop):
                code, error = codes[i], errors[i - start]
                torch.sub(left[i], base, out=code).div_(step).round_().clamp_(0, 2**bits - 1)
                torch.addcmul(base, code, wide, out=error)  # what the column reads back as
                torch.sub(left[i], error, out=error).div_(factor[i, i])
                left[i + 1 : stop].addr_(factor[i, i + 1 : stop], error, alpha=-1)
            left[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)  # the columns behind, once for all these
    scale, offset = (torch.cat(parts, dim=1) for parts in zip(*fitted, strict=True))
    return format.state(pack_bits(codes.T.contiguous(), bits), scale, offset, (rows, columns))


def _checked(hessian: Tensor, columns: int) -> Tensor:
    if tuple(hessian.shape) != (columns, columns) or not bool(torch.isfinite(hessian).all()):
        raise TopcoatError(
            f"the calibration sums are {tuple(hessian.shape)} or not finite; the weight has {columns} inputs",
            where="calibration",
            fix="sum x xᵀ over this linear's own inputs, in float32 or wider",
        )
    return hessian


def _upper(hessian: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor (I, I), float32, of the inverse of the damped hessian, computed in float64."""
    damped = hessian.double().clone()
    diagonal = damped.diagonal()
    unused = diagonal == 0
    diagonal[unused] = 1.0
    diagonal += damping * diagonal[~unused].mean() if bool((~unused).any()) else 0.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()
