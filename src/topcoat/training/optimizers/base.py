"""What every optimizer promises the loop: AdamW's update, with all of its state by parameter name.

Moments lie in the open, so that a checkpoint holds them without a pickle and a resume can check that none is missing.
They exist from the start: the first step allocates nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from topcoat.training.optimizers.trained import Group, Trained
from topcoat.training.settings import TrainSettings
from topcoat.training.tensor_file import require_fit

FIRST, SECOND = "exp_avg", "exp_avg_sq"


class Optimizer(ABC):
    """A step from gradients to parameters. Clipping and unscaling cost no pass: the update reads factor * gradient."""

    def __init__(self, trained: Trained, settings: TrainSettings) -> None:
        self.trained = trained
        self.settings = settings
        self.steps = 0
        """Optimizer steps taken: the t of the bias correction."""
        self._factor = 1.0

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is updated, by name."""
        return self.trained.parameters

    @torch.no_grad()
    def step(self, learning_rate: float, after_update: Callable[[float], None] = lambda factor: None) -> None:
        """Update every parameter from its gradient, then forget the gradients.

        In between, `after_update` is told the factor: factor * `.grad` is the gradient of this update.
        """
        self.steps += 1
        self._update(learning_rate, self._factor)
        after_update(self._factor)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._factor = 1.0
        self.trained.zero()

    def clip(self, max_norm: float | None, loss_scale: float = 1.0) -> float:
        """The next step divides the gradient by `loss_scale` and scales it down to `max_norm`.

        Returns its norm after the division, before the clipping, over all parameters. `.grad` stays as it is.
        """
        norm = self.trained.norm() / loss_scale
        clipped = max_norm / norm if max_norm is not None and norm > max_norm else 1.0
        self._factor = clipped / loss_scale
        return norm

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything beside `steps` that the next step depends on, by name: the tensors themselves, not copies."""

    def load(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Take up where `state` was saved after `steps` steps.

        Raises TopcoatError when a tensor is missing, left over, or of another shape or type; nothing is changed then.
        """
        mine = self.state()
        require_fit(mine, {n: (t.dtype, tuple(t.shape)) for n, t in state.items()}, "the optimizer's saved state")
        for name, tensor in mine.items():
            tensor.copy_(state[name])
        self.steps = steps

    @abstractmethod
    def release(self) -> None:
        """Give back memory that can be read again from a disk; called between the slices of a save or a resume."""

    @abstractmethod
    def _update(self, learning_rate: float, factor: float) -> None:
        """Step number `steps` (from 1) with factor * gradient."""

    def _decay(self, group: Group) -> float:
        return self.settings.weight_decay if group.decays else 0.0
