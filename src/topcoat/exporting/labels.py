"""A head for labels beside an adapter or in a model: its config, and the proof that transformers' class loads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging

from topcoat.exporting.proof import Proof, compare
from topcoat.files import write_file
from topcoat.model.families import family_of
from topcoat.model.load import Base
from topcoat.model.score import SCORE


@torch.no_grad()
def label_logits_of(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Float32 outputs (1, K) on the CPU of our head behind the last token of each prompt of token ids."""
    training = model.training
    model.eval()
    decoder, head = model.get_submodule(family_of(model).decoder), model.get_submodule(SCORE)
    try:
        found = []
        for ids in prompts:
            tokens = torch.tensor([list(ids)], device=model.device)
            hidden = decoder(input_ids=tokens, use_cache=False).last_hidden_state[:, -1]  # (1, D)
            found.append(head(hidden).float().cpu())
        return found
    finally:
        model.train(training)


@torch.no_grad()
def prove_labels(
    folder: Path, expected: Sequence[Tensor], prompts: Sequence[Sequence[int]], dtype: torch.dtype
) -> Proof:
    """Load `folder` as a stranger would, and compare what it says of the prompts with the `expected` outputs (1, K).

    All prompts are compared as one (N, K): a single output near zero has no digits of its own to compare.
    """
    model = _load(folder).eval()
    found = [model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits.float() for ids in prompts]
    return replace(compare([torch.cat(list(expected))], [torch.cat(found)], dtype), prompts=len(prompts))


def _load(folder: Path) -> PreTrainedModel:
    """What transformers makes of `folder`, without a bar of its own."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        loader = AutoModelForSequenceClassification
        model: PreTrainedModel = loader.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        return model
    finally:
        if bars:
            logging.enable_progress_bar()


def write_head_config(base: Base, folder: Path) -> None:
    """config.json beside the adapter: the base's own, with the head's labels. transformers builds its model from it."""
    assert base.head is not None
    config = base.source.config.to_dict()
    config.pop("quantization_config", None)
    config |= base.head.config()
    write_file(folder / "config.json", json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")
