"""The learning rate as a function of the step: a linear rise, then a cosine or a line to zero, or constant.

Step t of T, warm-up W:  lr = peak * (t + 1) / W for t < W;  then with x = (t - W) / (T - W):
peak * (1 + cos(pi x)) / 2,  peak * (1 - x),  or peak. The first step already learns; the step after the last is zero.
"""

from __future__ import annotations

import math

from topcoat.adapters.settings import AdapterConfig, LoraConfig
from topcoat.training.settings import TrainSettings


def warmup_steps(settings: TrainSettings, total_steps: int) -> int:
    """Steps of warm-up: as written, or the share of the run, rounded."""
    if settings.warmup_steps is not None:
        return min(settings.warmup_steps, total_steps)
    return round(settings.warmup_ratio * total_steps)


def learning_rate(step: int, total_steps: int, warmup: int, peak: float, shape: str) -> float:
    """The rate of optimizer step `step` (from 0) of `total_steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if shape == "constant":
        return peak
    x = (step - warmup) / max(1, total_steps - warmup)
    return peak * (1 - x) if shape == "linear" else peak * (1 + math.cos(math.pi * x)) / 2


def default_learning_rate(adapter: AdapterConfig, parameters: int) -> float:
    """The peak rate by model size for AdamW, rank 16, alpha 32, 16 examples a step; full tuning a tenth of it.

    135M 1e-3; up to 1B 5e-4; up to 3B 3e-4; up to 13B 2e-4; above 1e-4. Centres of a sweep, from the QLoRA paper's
    table (arXiv:2305.14314, B.2) and the rank-free fit of "LoRA Without Regret" (Thinking Machines, 2025), at 135M
    measured (docs/decisions/0011-learning-rates.md). The other methods' factors are in RATE_FACTORS; LoRA+, whose B
    learns faster by a ratio, takes 2 / ratio.
    """
    by_size = ((0.35e9, 1e-3), (1.2e9, 5e-4), (4e9, 3e-4), (20e9, 2e-4), (math.inf, 1e-4))
    rate = next(rate for limit, rate in by_size if parameters < limit)
    ratio = adapter.loraplus_lr_ratio if isinstance(adapter, LoraConfig) else None
    return rate * RATE_FACTORS.get(adapter.method, 1.0) * (min(1.0, 2 / ratio) if ratio else 1.0)


RATE_FACTORS = {
    "full": 0.1,
    "qalora": 16.0,  # means of 32 inputs are small; measured, see the decision
    "adalora": 4.0,  # three factors, one from zero; measured
    "miss": 0.25,  # measured at rank 64
    **dict.fromkeys(("vera", "ia3", "prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2"), 10.0),
}
"""Method -> its rate in LoRA's (arXiv:2104.08691, 2110.07602, 2310.11454, 2205.05638; PEFT's comparison of methods)."""
FAST = tuple(method for method, factor in RATE_FACTORS.items() if factor >= 10)
"""Methods for which a LoRA rate is far too low."""
