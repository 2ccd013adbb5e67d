"""Settings of the evaluation on the validation rows. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from topcoat.config import Config

AT_ONCE = 64
"""Prompts that are answered at once; half of them where memory is too small."""


class EvaluateSettings(Config):
    """What is measured on the validation rows, for the base and for the adapter."""

    metrics: list[Literal["perplexity", "exact_match"]] = Field(["perplexity", "exact_match"])
    """perplexity: exp of the mean loss of the target tokens. exact_match: share of greedy answers equal to the
    reference after stripping outer white space."""
    every: Annotated[int, Field(ge=1)] | None = None
    """Steps between evaluations of the validation loss. null evaluates four times a run."""
    rows: Annotated[int, Field(ge=1)] = 100
    """Most validation rows answered for exact_match, and most used for the loss during the run; the first ones."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    """Longest answer generated for exact_match and for the samples."""
    samples: Annotated[int, Field(ge=0)] = 3
    """Validation prompts answered at each evaluation and kept in samples.jsonl."""
