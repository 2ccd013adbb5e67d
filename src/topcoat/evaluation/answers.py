"""Greedy answers to prompts, and how many equal their reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from topcoat.evaluation.settings import AT_ONCE
from topcoat.model.generate import generate


@dataclass(frozen=True)
class Question:
    """One prompt as token ids, ready for the assistant to speak, and the answer the data gives."""

    prompt_ids: list[int]
    prompt: str
    reference: str


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    stop_ids: set[int],
    max_new_tokens: int,
    on_answer: Callable[[int], None] | None = None,
    check: Callable[[], None] | None = None,
    batch_size: int = AT_ONCE,
) -> list[str]:
    """The model's greedy answer to each question, as text without special tokens.

    `on_answer` hears how many are done, after every `batch_size` of them; `check` is called before every token and may
    raise to leave.
    """
    answers: list[str] = []
    for start in range(0, len(questions), batch_size):
        prompts = [question.prompt_ids for question in questions[start : start + batch_size]]
        ids = generate(model, tokenizer, prompts, max_new_tokens, stop_ids, batch_size=batch_size, check=check)
        answers += [str(tokenizer.decode(row, skip_special_tokens=True)) for row in ids]
        if on_answer is not None:
            on_answer(len(answers))
    return answers


def exact_match(answers: Sequence[str], questions: Sequence[Question]) -> float:
    """Share of answers equal to their reference, outer white space aside; NaN without questions."""
    if not questions:
        return math.nan
    hits = sum(a.strip() == q.reference.strip() for a, q in zip(answers, questions, strict=True))
    return hits / len(questions)
