"""Runs that learn labels or numbers: their head, what their adapter's folder says of it, and a line labelled by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from topcoat.adapters.attach import Adapters
from topcoat.adapters.settings import AdapterConfig, BesideConfig
from topcoat.data.labels import Labels
from topcoat.errors import TopcoatError
from topcoat.exporting.labels import label_logits_of
from topcoat.model.load import Base
from topcoat.model.score import SCORE, put_score_head, read_label_head
from topcoat.runs.conversation import GREEDY, LineByLine, Sampling

MOST_SAID = 5
"""Labels that are said of a line, the likeliest first."""


def with_label_head(base: Base, adapter: AdapterConfig, labels: Labels | None, seed: int) -> AdapterConfig:
    """Put the head of `labels` on the model, where there are some; returns the adapter's settings with it trained.

    Raises TopcoatError for a model that cannot have one.
    """
    if labels is None:
        return adapter
    put_score_head(base, labels.objective, labels.names, seed)
    if not isinstance(adapter, BesideConfig) or SCORE in adapter.modules_to_save:
        return adapter
    return adapter.model_copy(update={"modules_to_save": [*adapter.modules_to_save, SCORE]})


def put_head_of(base: Base, folder: Path) -> None:
    """Put the head on the model that the finished adapter (or model) in `folder` was trained with."""
    objective, names = read_label_head(folder)
    put_score_head(base, objective, names)


class Labeller(LineByLine):
    """Each line is a text; the answer is what the head says of it."""

    def __init__(self, base: Base, adapters: Adapters | None) -> None:
        super().__init__(base, adapters)
        assert base.head is not None
        self.head = base.head

    def switch(self, on: bool) -> str:
        """The head belongs to the adapter: the base alone says nothing."""
        return "the base has no head for labels: only the adapter answers" if not on else "the adapter answers"

    def answer(self, text: str, on_piece: Callable[[str], None], sampling: Sampling = GREEDY) -> str:
        """What the head says of `text`: its likeliest labels with their probabilities, or its numbers."""
        ids = self.ids_of(text)
        if len(ids) > self.base.context_length:
            what = f"the text has {len(ids):,} tokens; the model's context is {self.base.context_length:,}"
            raise TopcoatError(what, "the text", "shorten it")
        said = self._said(label_logits_of(self.base.model, [ids])[0][0])
        on_piece(said)
        return said

    def _said(self, outputs: torch.Tensor) -> str:
        names = self.head.names
        if self.head.objective == "regression":
            return ", ".join(f"{name} {value:.4g}" for name, value in zip(names, outputs.tolist(), strict=True))
        likely = outputs.softmax(-1).topk(min(MOST_SAID, len(names)))
        pairs = zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
        return ", ".join(f"{names[at]} {100 * share:.1f} %" for at, share in pairs)
