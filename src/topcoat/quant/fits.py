"""How a group's scale and low are found: from its range, by half-quadratic steps, or by the entropy of its codes.

nearest   low = min(w, 0), scale = (max(w, 0) - low) / (2**bits - 1). Zero lies in every range, so that rounding low
          to fp16 moves the levels by less than a hundredth of their distance, also where all weights are alike.
hqq       from there, low moves in 20 half-quadratic steps towards the least sum |w - back|**0.7, which forgives few
          large errors for many small ones:  e = shrink(w - back),  low = mean(w - e - scale code).
          Badri and Shaji 2023, "Half-Quadratic Quantization" (no arXiv); the best step of each group is kept.
icq       from there, the scale is the one of 21 between 0.9 and 1.1 times it whose codes have the most entropy.
          Qin et al. 2024 (IR-QLoRA), arXiv:2402.05445, the integer variant of section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from topcoat.errors import TopcoatError

HQQ_NORM = 0.7
HQQ_BETA, HQQ_GROWTH, HQQ_STEPS = 10.0, 1.01, 20
ICQ_FACTORS = 21

Fit = Callable[[Tensor, int, torch.dtype], tuple[Tensor, Tensor]]
"""(grouped (n, L, S) float32, bits, storage dtype) -> scale and low (n, L) in that dtype."""


def nearest(grouped: Tensor, scale: Tensor, low: Tensor, bits: int) -> Tensor:
    """grouped (..., S) float32 with scale and low (...) -> codes (..., S), float32 of whole numbers."""
    wide, base = scale.float()[..., None], low.float()[..., None]
    unit = torch.where(wide > 0, (grouped - base) / wide, 0.0)
    return unit.round_().clamp_(0, 2**bits - 1)


def by_range(grouped: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """nearest."""
    least, most = torch.aminmax(grouped, dim=-1)
    low = least.clamp(max=0).to(dtype)
    steps = 2**bits - 1
    return (most.clamp(min=0) / steps - low.float() / steps).to(dtype), low  # divided first: the range may overflow


def half_quadratic(grouped: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """hqq; never worse than by_range in its own measure, in any group."""
    scale, low = by_range(grouped, bits, dtype)
    wide = scale.float()[..., None]  # (n, L, 1)
    unit = wide.clamp(min=torch.finfo(torch.float32).tiny)  # errors are counted in steps, so magnitudes do not matter
    best, least = low.clone(), torch.full(low.shape, torch.inf, device=low.device)
    beta = HQQ_BETA
    for _ in range(HQQ_STEPS + 1):
        codes = nearest(grouped, scale, low, bits)
        left = grouped - codes * wide - low.float()[..., None]  # (n, L, S)
        error = (left / unit).abs().pow(HQQ_NORM).sum(-1)
        better = error < least
        best, least = torch.where(better, low, best), torch.where(better, error, least)
        size = left.abs()
        shrunk = left.sign() * (size - size.clamp(min=1e-30).pow(HQQ_NORM - 1) / beta).clamp(min=0)
        low = (grouped - shrunk - codes * wide).mean(-1).to(dtype)
        beta *= HQQ_GROWTH
    return scale, best


def most_entropy(grouped: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """icq; never less entropy than by_range, in any group."""
    start, low = by_range(grouped, bits, dtype)
    best, most = start, entropy(nearest(grouped, start, low, bits), bits)
    for factor in torch.linspace(0.9, 1.1, ICQ_FACTORS).tolist():
        scale = (start.float() * factor).to(dtype)
        told = entropy(nearest(grouped, scale, low, bits), bits)
        better = told > most
        best, most = torch.where(better, scale, best), torch.where(better, told, most)
    return best, low


def entropy(codes: Tensor, bits: int) -> Tensor:
    """codes (..., S), whole numbers below 2**bits -> bits of information a code, (...) float32."""
    counts = torch.zeros(*codes.shape[:-1], 2**bits, device=codes.device)
    counts.scatter_add_(-1, codes.long(), torch.ones_like(codes, dtype=torch.float32))
    share = counts / codes.shape[-1]
    return -torch.xlogy(share, share).sum(-1) / torch.log(torch.tensor(2.0))


def require_no_rows(rounding: str) -> None:
    """Raises TopcoatError for a rounding that needs activations, where only the weight is at hand."""
    if rounding == "gptq":
        raise TopcoatError(
            "rounding gptq looks at activations, and here is the weight alone",
            where="model.quantization.rounding",
            fix="train from a recipe, which calibrates on its rows; or topcoat quantize --calibrate ROWS",
        )


FITS: dict[str, Fit] = {"nearest": by_range, "hqq": half_quadratic, "icq": most_entropy, "gptq": by_range}
"""By the name in the settings; gptq differs in how codes are chosen (gptq.py), not in scale and low."""
