"""The head of labels and numbers: s = W h in float32, W (K, D), in place of the head that predicts tokens.

It is transformers' `score` of `ForSequenceClassification`: the same path, the same shape and no bias, so what trains
here loads there (as PEFT's SEQ_CLS with modules_to_save: [score]). It is put on a loaded model; the head of the tokens
is taken off, since nothing reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from topcoat.errors import TopcoatError
from topcoat.json_files import read_json_object
from topcoat.model.families import FAMILIES

if TYPE_CHECKING:
    from topcoat.model.load import Base

SCORE = "score"
"""Where transformers keeps the head, in every family of FAMILIES."""
STD = 0.02
"""Of the head's start: what these families initialise their linears with."""
PROBLEMS = {"classification": "single_label_classification", "regression": "regression"}
"""Objective -> transformers' problem_type."""


class ScoreHead(nn.Module):
    """hidden (..., D) -> (..., K), float32 whatever goes in."""

    def __init__(self, width: int, outputs: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, width).normal_(0.0, STD, generator=generator))

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden.float(), self.weight.float())


@dataclass(frozen=True)
class LabelHead:
    """What a model's head says: the objective it learned, and the names of its outputs in their order."""

    objective: str
    names: tuple[str, ...]
    architecture: str
    """transformers' class that computes the same, such as LlamaForSequenceClassification."""
    pad_token_id: int | None
    """What transformers passes over when it looks for the last token of a padded row."""

    def config(self) -> dict[str, Any]:
        """What config.json says of it."""
        return {
            "architectures": [self.architecture],
            "id2label": {str(at): name for at, name in enumerate(self.names)},
            "label2id": {name: at for at, name in enumerate(self.names)},
            "pad_token_id": self.pad_token_id,
            "problem_type": PROBLEMS[self.objective],
        }


def put_score_head(base: Base, objective: str, names: Sequence[str], seed: int = 0) -> None:
    """Put a head of `len(names)` outputs on the model of `base`; its start follows from `seed`.

    Raises TopcoatError for an architecture that transformers has no such head for.
    """
    config = base.source.config
    kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    family = FAMILIES.get(config.model_type)
    if kind is None or family is None:
        raise TopcoatError(
            f"{base.identity.architecture} has no head for labels that transformers could load",
            where="train.objective",
            fix=f"use a model of one of these kinds: {', '.join(FAMILIES)}",
        )
    generator = torch.Generator().manual_seed(seed)
    head = ScoreHead(base.model.config.hidden_size, len(names), generator).requires_grad_(False).eval()
    base.model.set_submodule(family.head, nn.Identity())
    base.model.add_module(SCORE, head.to(base.device))
    tokenizer = base.tokenizer
    padding = getattr(config, "pad_token_id", None)
    padding = padding if padding is not None else tokenizer.pad_token_id
    base.head = LabelHead(
        objective, tuple(names), kind.__name__, padding if padding is not None else tokenizer.eos_token_id
    )
    base.identity = base.identity.model_copy(update={"architecture": kind.__name__})


def read_label_head(folder: Path) -> tuple[str, tuple[str, ...]]:
    """The objective and the names of the outputs that the config.json in `folder` states.

    Raises TopcoatError where it states none.
    """
    path = folder / "config.json"
    stated = read_json_object(path, "copy the folder again") if path.is_file() else {}
    names, problem = stated.get("id2label"), stated.get("problem_type")
    objective = next((name for name, said in PROBLEMS.items() if said == problem), None)
    if not isinstance(names, dict) or objective is None:
        raise TopcoatError(f"{path} names no labels", str(folder), "copy the whole folder again, with its config.json")
    return objective, tuple(str(names[str(at)]) for at in range(len(names)))
