"""Settings of the guidance: which of its rules to leave unsaid. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from topcoat.config import Config

RuleId = Literal[
    "attention-only",
    "alpha-over-r",
    "high-rank",
    "low-rank",
    "capacity",
    "dropout",
    "starts-from-the-weight",
    "loftq-base",
    "loraplus-rate",
    "not-servable",
    "whole-embedding",
    "adalora-budget",
    "prompt-on-small",
    "lora-rate",
    "full-rate",
    "other-rate",
    "rate-by-size",
    "short-run",
    "warm-up",
    "epochs",
    "large-batch",
    "weight-decay",
    "clipping",
    "beta2",
    "forgetting",
    "fp16-on-4bit",
    "format-by-choice",
    "nf4-details",
    "small-in-4bit",
    "integer-target",
    "loss-on-prompts",
    "long-prompts",
    "continued-pretraining",
]
"""Ids of the rules in `rules.py`, in its order."""


class GuidanceSettings(Config):
    """What `topcoat plan` and `topcoat train` say about doubtful settings."""

    silence: list[RuleId] = Field(default_factory=list)
    """Rules to leave unsaid, by the id that stands behind what they say. A rule changes nothing in a run either way."""
