"""Of each block of weights, the centre around which its codes of few levels tell the most.

Weights w around a centre c have codes nearest((w - c) / max|w - c|), and n_k of a block's n weights have code k. Their
entropy is log2(n) - sum_k n_k log2(n_k) / n, so the best centre is that of the least sum. The sum is of whole numbers,
round(2^20 n log2 n): the order in which it is formed changes nothing, and candidates that are equal are found equal.

Information calibration quantization: Qin et al. 2024 (IR-QLoRA), arXiv:2402.05445, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from topcoat.kernels.dispatch import native_for

SMALLEST = 1e-38  # bitsandbytes' floor under a block's scale before it divides by it


def best_centres(
    values: Tensor, last: int, median: Tensor, reach: Tensor, factors: Sequence[float], borders: Sequence[float]
) -> Tensor:
    """values (n, S), of whose last block the first `last` weights count, median and reach (n,), all float32 -> (n,).

    The candidates are zero and factor * reach + median, in the order of `factors`; of equals the first one stands.
    A weight takes the code after the highest of the rising `borders` (3, 7 or 15) that it lies above.
    """
    library = native_for(values)
    whole = all(x.is_contiguous() and x.dtype == torch.float32 and x.is_cpu for x in (values, median, reach))
    if library is None or not whole:
        return best_centres_reference(values, last, median, reach, factors, borders)
    out, told = torch.empty_like(median), _told(values.shape[1], values.device)
    steps, edges = (torch.tensor(list(given), dtype=torch.float32) for given in (factors, borders))
    where = [x.data_ptr() for x in (values, median, reach, steps, edges, told, out)]
    size = *values.shape, last, 1 + len(steps), len(edges)
    library.best_centres(torch.get_num_threads(), *where, *size)
    return out


def best_centres_reference(
    values: Tensor, last: int, median: Tensor, reach: Tensor, factors: Sequence[float], borders: Sequence[float]
) -> Tensor:
    """The definition."""
    edges, told = torch.tensor(list(borders), device=values.device), _told(values.shape[1], values.device)
    real = torch.ones_like(values, dtype=torch.bool)
    real[-1, last:] = False

    def sum_of(centre: Tensor) -> Tensor:
        left = (values - centre[:, None]).where(real, torch.zeros(()))
        unit = left * (1.0 / left.abs().amax(-1).clamp(min=SMALLEST))[:, None]
        codes = torch.bucketize(unit, edges)
        counts = torch.zeros(len(values), len(edges) + 1, dtype=torch.int64, device=values.device)
        counts.scatter_add_(1, codes, real.long())
        return told[counts].sum(-1)

    best = torch.zeros_like(median)
    least = sum_of(best)
    for factor in factors:
        centre = factor * reach + median
        found = sum_of(centre)
        better = found < least
        best, least = torch.where(better, centre, best), torch.where(better, found, least)
    return best


@cache
def _told(size: int, device: torch.device) -> Tensor:
    """(S + 1,) int64: round(2^20 n log2 n)."""
    with torch.inference_mode(False):
        return torch.tensor([0, *(round(2**20 * n * math.log2(n)) for n in range(1, size + 1))], device=device)
