"""What a plan or a run knows of model and data, for the rules of the guidance that ask for it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from topcoat.planning.estimate import Estimate
from topcoat.recipe.guidance import Facts
from topcoat.recipe.rules import learned_since
from topcoat.recipe.schema import Recipe
from topcoat.runs.listener import Listener

if TYPE_CHECKING:
    from topcoat.adapters.attach import Adapters
    from topcoat.data.checks.corpus import Setting
    from topcoat.data.load import Dataset
    from topcoat.model.load import Base

CAPACITY = "capacity"
"""The rule that the checks of a run's data have as well, with a policy of its own in data.checks: the check says what
both know, unless it is off."""


def facts_of_plan(made: Estimate) -> Facts:
    """Sizes, and about how much data there is."""
    request = made.request
    tokens = None if request.rows is None else round(request.rows * request.row_tokens)
    stored_bytes = 0 if made.counts.full else made.counts.codes_bytes + made.counts.constant_bytes
    return Facts(
        parameters=request.architecture.parameters,
        tied=request.architecture.tied,
        trained=made.counts.trained_numbers,
        weight_bits=8 * stored_bytes / request.architecture.linear_numbers or None,
        rows=request.rows,
        tokens=tokens,
        steps=request.steps,
    )


def facts_of_run(base: Base, adapters: Adapters, data: Dataset, steps: int) -> Facts:
    """Everything, exactly."""
    from topcoat.model.families import blocks_of  # these import torch, which a plan has no use for
    from topcoat.quant.linear import FrozenLinear
    from topcoat.runs.opening import base_parameters

    frozen = [module.weight_state for module in blocks_of(base.model).modules() if isinstance(module, FrozenLinear)]
    numbers = sum(math.prod(q.shape) for q in frozen)
    return Facts(
        parameters=base_parameters(base, adapters),
        tied=bool(base.model.config.tie_word_embeddings),
        trained=adapters.count(),
        weight_bits=8 * sum(q.nbytes for q in frozen) / numbers if frozen else None,
        rows=len(data.train),
        tokens=data.report.tokens,
        target_tokens=data.report.target_tokens,
        steps=steps,
        data_format=data.report.format,
    )


def tell(recipe: Recipe, facts: Facts, listener: Listener) -> None:
    """Say what the rules have to say now that `facts` are known; what the recipe alone tells was said with it."""
    from rich.text import Text

    for guide in learned_since(recipe, facts):
        if guide.rule.id != CAPACITY or recipe.data.checks.capacity == "off":
            listener.show(Text(str(guide), style="yellow" if guide.rule.severity == "warning" else "dim"))


def without_silenced(recipe: Recipe, setting: Setting) -> Setting:
    """`setting` of the data checks without the adapter's size, where only a silenced rule would be said by it.

    A check whose policy is stop was asked for by name and stays; so does what the check says of too few tokens.
    """
    silent = CAPACITY in recipe.guidance.silence and recipe.data.checks.capacity == "warn"
    if silent and (setting.target_tokens or 0) > (setting.adapter_parameters or 0):
        return replace(setting, adapter_parameters=None)
    return setting
