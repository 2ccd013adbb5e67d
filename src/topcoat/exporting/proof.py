"""The proof of an artefact: the same prompts through two models, and how far their logits are apart.

Both compute in float32 over their own stored weights, so what is left is what the export itself changed: the rounding
of the merged weights to the output dtype, or an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from topcoat.errors import Refused

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Largest |a - b| / |b| over all logits, by the dtype the weights were written in: 1e-4 is float32 summed in another
order, 1e-2 is bf16 rounding (2^-9 a weight) seen through all layers."""


DEFECT = "run again with --debug and report it, this is a defect"
"""The way out of a proof that nothing explains."""


@dataclass(frozen=True)
class Proof:
    """What was compared and what came out."""

    prompts: int
    tokens: int
    relative_error: float
    """|merged - expected| / |expected|, Euclidean over all logits; the worst prompt."""
    max_abs_error: float
    top1_agreement: float
    """Share of positions with the same most likely next token."""
    kl: float
    """Mean KL(expected || merged) a position, in nats."""
    tolerance: float

    @property
    def holds(self) -> bool:
        """True if the worst prompt is within tolerance; NaN is not."""
        return self.relative_error <= self.tolerance

    def as_json(self) -> dict[str, Any]:
        """All figures and the verdict."""
        return {**asdict(self), "verified": self.holds}

    def require(self, what: str, way_out: str = DEFECT) -> None:
        """Raises Refused when the proof does not hold."""
        if not self.holds:
            raise Refused(
                f"{what} does not compute what it should: its logits are off by {self.relative_error:.2e} "
                f"(at most {self.tolerance:.0e} is rounding), top-1 agreement {self.top1_agreement:.1%}",
                fix=f"nothing was published; {way_out}",
            )


@torch.no_grad()
def logits_of(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Float32 logits (T, V) on the CPU for each prompt of token ids."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        return [
            model(torch.tensor([list(ids)], device=device), use_cache=False).logits[0].float().cpu()  # (T, V)
            for ids in prompts
        ]
    finally:
        model.train(training)


def compare(expected: Sequence[Tensor], found: Sequence[Tensor], dtype: torch.dtype) -> Proof:
    """The proof that `found` are `expected` up to the rounding of `dtype`; one prompt at a time is widened."""
    relative, worst = [], []
    kl, same, positions = 0.0, 0, 0
    for e, f in zip(expected, found, strict=True):  # (T, V) each
        relative.append((f - e).norm() / e.norm())
        worst.append((f - e).abs().max())
        kl += float(F.kl_div(f.log_softmax(-1), e.log_softmax(-1), log_target=True, reduction="sum"))
        same += int((e.argmax(-1) == f.argmax(-1)).sum())
        positions += len(e)
    return Proof(
        prompts=len(expected),
        tokens=positions,
        relative_error=float(torch.stack(relative).max()),  # torch's maximum: unlike Python's, NaN wins
        max_abs_error=float(torch.stack(worst).max()),
        top1_agreement=same / positions,
        kl=kl / positions,
        tolerance=TOLERANCES[dtype],
    )
