"""STEP_RULES: what an adapter method does in each step beside the update, by the method's name.

The loop asks every rule the same things at the same places, so it knows no method by name. A method without a rule has
`NoRule`, which does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from topcoat.adapters.attach import Adapters
from topcoat.training.ranks import rank_allocation


class StepRule(Protocol):
    """One run's rule. A step is the number of optimizer steps done, from 1."""

    def penalty(self) -> Tensor | None:
        """What is added to the mean loss of a step: once, however many micro batches it has. None for nothing."""
        ...

    def after_update(self, step: int, factor: float | None) -> None:
        """The parameters of `step` are updated and factor * `.grad` is the gradient they were updated by.

        `factor` is None for a step that was skipped.
        """
        ...

    def settled(self, step: int) -> bool:
        """Whether what stands after `step` may be the run's result: only then evaluations look for the best."""
        ...

    def figures(self, step: int) -> dict[str, Any]:
        """What the step's row of metrics.jsonl tells of it."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything beside the adapter that the next step depends on, by name: the tensors themselves."""
        ...


class NoRule:
    """The rule of a method that has none."""

    def penalty(self) -> Tensor | None:
        """Nothing."""
        return None

    def after_update(self, step: int, factor: float | None) -> None:
        """Nothing."""

    def settled(self, step: int) -> bool:
        """Always."""
        return True

    def figures(self, step: int) -> dict[str, Any]:
        """None."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """None."""
        return {}


STEP_RULES: dict[str, Callable[[Adapters, int], StepRule]] = {"adalora": rank_allocation}
"""Method -> (what is attached, the run's steps) -> its rule."""


def step_rule(adapters: Adapters, total_steps: int) -> StepRule:
    """The rule of the attached method. Raises TopcoatError for settings that do not fit a run of `total_steps`."""
    make = STEP_RULES.get(adapters.config.method)
    return NoRule() if make is None else make(adapters, total_steps)
