"""Guidance: what papers and practice say about the settings of a recipe, said before the run and done as asked.

A rule is a small function (recipe, facts) -> what it says, or None, with an id, a severity and a source; the table of
them is `rules.py`. `Facts` are what only the model and the data can tell: a rule that needs one that is not known yet
says nothing, and is asked again by `topcoat plan` and `topcoat train`, which know it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from topcoat.recipe.schema import Recipe
from topcoat.recipe.settings import RuleId


@dataclass(frozen=True)
class Facts:
    """What is known of model and data; None where it is not."""

    parameters: int | None = None
    """Of the base model."""
    tied: bool | None = None
    """The head is the embedding."""
    trained: int | None = None
    """Parameters that train."""
    weight_bits: float | None = None
    """Bits that one frozen weight of the blocks takes, its share of the scales included."""
    rows: int | None = None
    """Training rows."""
    tokens: int | None = None
    """Of the training rows, prompts included."""
    target_tokens: int | None = None
    """Those of them that are trained."""
    steps: int | None = None
    """Optimizer steps of the run."""
    data_format: str | None = None
    """Shape of a row, where the recipe leaves it to the file."""


@dataclass(frozen=True)
class Rule:
    """One rule."""

    id: RuleId
    severity: Literal["note", "warning"]
    """note: good to know; warning: usually a mistake."""
    source: str
    says: Callable[[Recipe, Facts], str | None]
    """What is said of this recipe, with the value in hand; its docstring is the rule in one line."""

    @property
    def summary(self) -> str:
        """The rule in one line."""
        return " ".join((self.says.__doc__ or "").split())


@dataclass(frozen=True)
class Guide:
    """One rule that has something to say."""

    rule: Rule
    what: str

    def __str__(self) -> str:
        return f"{self.rule.severity}: {self.what} ({self.rule.source}) [guidance.silence: {self.rule.id}]"


def guides(rules: Iterable[Rule], recipe: Recipe, facts: Facts) -> list[Guide]:
    """What `rules` say, warnings first; those that the recipe silences are not asked."""
    asked = [rule for rule in rules if rule.id not in recipe.guidance.silence]
    found = [Guide(rule, said) for rule in asked if (said := rule.says(recipe, facts))]
    return sorted(found, key=lambda guide: guide.rule.severity == "note")
