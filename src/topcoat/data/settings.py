"""Settings of the data: which rows, how they become tokens, which of those are trained. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from topcoat.config import Config
from topcoat.data.checks.settings import DataChecks

Share = Annotated[float, Field(gt=0, lt=1)]


Allowed = Literal["dropped_turns", "moved_turns", "rewritten_answers", "no_stop_token", "all_trained"]


class MixturePart(Config):
    """One file of a mixture."""

    train_file: str = Field(min_length=1)
    """A file of rows, as data.train."""
    weight: float | None = Field(None, gt=0)
    """Its share of the examples, relative to the other weights; null in all parts takes each row once an epoch."""


class DataSettings(Config):
    """The examples of a run."""

    train: str = Field(min_length=1)
    """A file of rows: .jsonl, .json, .csv, .tsv, .parquet, or one of these with .gz, .bz2, .xz or .zst behind it. Plain
    text, .txt or .md, is one document."""
    mixture: list[MixturePart] | None = Field(None, min_length=1, max_length=100)
    """Several files in place of data.train: [{train_file: a.jsonl, weight: 3}, {train_file: b.jsonl, weight: 1}]. An
    epoch has as many examples as there are rows; each file gives its share of them."""
    validation: str | Share | None = 0.1
    """A file of held-out rows, or the share of the training rows to hold out (seeded), or null for none."""
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "preference", "unpaired", "text"] = (
        "auto"
    )
    """Shape of a row. auto recognises it from the columns and says which it took. preference and unpaired rows are for
    objectives that read two answers, or one that is labelled."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Renames: {prompt: question, completion: answer} reads the file's `question` as `prompt`."""
    text_template: str | None = Field(None, min_length=1)
    """Text made of columns, such as "Q: {question}\\nA: {answer}": each row becomes one plain text, every token of it
    trained. A brace itself is written {{ or }}."""
    label_columns: list[str] = Field(default_factory=lambda: ["label"], min_length=1)
    """Columns of what classification and regression learn: one for the label of a row, one or several for numbers (or
    one that holds a list of them)."""
    labels: list[str] | None = Field(None, min_length=2)
    """Names of the labels in the order of the head; whole numbers in the rows then count them from 0. null takes those
    of the training rows, sorted."""
    max_length: Annotated[int, Field(ge=8)] | Literal["auto"] = "auto"
    """Most tokens of one example. auto is the longest example, or the model's context if that is shorter; objective:
    completion takes windows of 2048 at most."""
    overlong: Literal["error", "drop", "truncate", "split"] = "error"
    """What happens to an example longer than max_length: stop and say which, leave it out, cut its end, or cut it
    into several examples (the default of objective: completion, whose windows lose no token). Counted and reported in
    every case."""
    loss_on: Literal["assistant", "completion", "all", "last_turn"] = "assistant"
    """Tokens that are trained: every assistant turn with its stop token; everything after the first prompt; every
    token; or the last assistant turn only."""
    packing: bool = True
    """Let examples share a row, attention kept inside each and positions restarted. The loss does not change."""
    cache: bool = True
    """Keep the tokens of each file in the cache folder ($TOPCOAT_CACHE, or the system's place for it), 4 bytes a token
    and the answers that may be asked, and read them from there while file, tokenizer, template and settings are the
    same."""
    checks: DataChecks = DataChecks()
    """What `topcoat data check` and a run look for in the rows, and what a finding does."""
    allow: list[Allowed] = Field(default_factory=list)
    """What the run may do although it is refused else: train where the chat template leaves turns out, moves them or
    rewrites answers; train no token that ends an answer; train every token where loss_on is not all."""

    @model_validator(mode="before")
    @classmethod
    def _train_is_the_first_of_a_mixture(cls, values: Any) -> Any:
        parts = values.get("mixture") if isinstance(values, dict) else None
        if not isinstance(parts, list) or not parts:
            return values
        first = parts[0].get("train_file") if isinstance(parts[0], dict) else getattr(parts[0], "train_file", None)
        return {**values, "train": first} if isinstance(first, str) else values

    @property
    def train_files(self) -> list[tuple[str, float | None]]:
        """(file, weight) of all that is trained on; a weight of None is each row once an epoch."""
        if self.mixture is not None:
            return [(part.train_file, part.weight) for part in self.mixture]
        return [(self.train, None)]
