"""What trains: a recipe's adapter on the base, and the optimizer of its parameters."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch

from topcoat.adapters.attach import Adapters, attach
from topcoat.adapters.settings import FullConfig
from topcoat.data.load import Dataset
from topcoat.model.load import Base
from topcoat.model.originals import Originals
from topcoat.recipe.schema import Recipe
from topcoat.runs.labelling import with_label_head
from topcoat.training.optimizers.base import Optimizer
from topcoat.training.optimizers.choices import make_optimizer

START_ROWS = 128
"""Examples that a start from the data (EVA) may look at; it stops earlier once its directions stand still."""


def attach_to(base: Base, data: Dataset, recipe: Recipe) -> Adapters:
    """The recipe's adapter on the base, started from the seed, the weights or the first rows, as it says."""
    rows = (torch.tensor([row.input_ids], device=base.device) for row in islice(data.train, START_ROWS))
    return attach(
        base.model,
        with_label_head(base, recipe.adapter, data.labels, recipe.seed),
        recipe.seed,
        originals=Originals(base),
        rows=rows,
        tokenize=lambda text: list(base.tokenizer(text)["input_ids"]),
    )


def optimizer_for(adapters: Adapters, recipe: Recipe, folder: Path) -> Optimizer:
    """A fresh one for all that trains; states on disk, where the recipe asks for that, lie in `folder`."""
    return make_optimizer(
        adapters.parameters(),
        recipe.train,
        folder=folder,
        flat=not isinstance(recipe.adapter, FullConfig),
        rate_factor=adapters.rate_factor,
    )
