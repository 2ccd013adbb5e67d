"""What changes a loss beside the batch: label smoothing and the weights of the labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LossOptions:
    """Options of one loss; every objective takes those that it knows."""

    label_smoothing: float = 0.0
    """e of the target (1 - e) onehot(y) + e / K (Szegedy et al. 2015, arXiv:1512.00567, section 7)."""
    class_weights: Tensor | None = None
    """(K,) float32, what each row's loss is multiplied with by its label."""


PLAIN = LossOptions()
