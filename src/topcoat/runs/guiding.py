"""What a plan or a run knows of model and data, for the rules of the guidance that ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from topcoat.planning.estimate import Estimate
from topcoat.recipe.guidance import Facts
from topcoat.recipe.rules import learned_since
from topcoat.recipe.schema import Recipe
from topcoat.runs.listener import Listener

if TYPE_CHECKING:
    from topcoat.adapters.attach import Adapters
    from topcoat.data.load import Dataset
    from topcoat.model.load import Base

SAID_BY_CHECKS = ("capacity",)
"""Rules that the checks of a run's data have as well, with exact counts and a policy of their own."""


def facts_of_plan(made: Estimate) -> Facts:
    """Sizes, and about how much data there is."""
    request = made.request
    tokens = None if request.rows is None else round(request.rows * request.row_tokens)
    return Facts(
        parameters=request.architecture.parameters,
        tied=request.architecture.tied,
        trained=made.counts.trained_numbers,
        rows=request.rows,
        tokens=tokens,
        steps=request.steps,
    )


def facts_of_run(base: Base, adapters: Adapters, data: Dataset, steps: int) -> Facts:
    """Everything, exactly."""
    from topcoat.runs.opening import base_parameters  # imports torch, which a plan has no use for

    return Facts(
        parameters=base_parameters(base, adapters),
        tied=bool(base.model.config.tie_word_embeddings),
        trained=adapters.count(),
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
        if guide.rule.id not in SAID_BY_CHECKS:
            listener.show(Text(str(guide), style="yellow" if guide.rule.severity == "warning" else "dim"))
