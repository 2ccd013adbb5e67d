"""Greedy answers, and how many are the reference."""

from __future__ import annotations

import math

import pytest
import torch

from topcoat.evaluation.answers import Question, answer, exact_match
from topcoat.model.tiny import tiny_model, tiny_tokenizer

TEXTS = ["The capital of", "def add", "How many days are in a week? There"]


def questions() -> list[Question]:
    tokenizer = tiny_tokenizer()
    return [Question(tokenizer(text)["input_ids"], text, "reference") for text in TEXTS]


@torch.no_grad()
def greedy(model, ids: list[int], stop: set[int], n: int) -> list[int]:
    """One token after the other, each from the whole text so far."""
    found: list[int] = []
    for _ in range(n):
        token = int(model(torch.tensor([ids + found]), use_cache=False).logits[0, -1].argmax())
        if token in stop:
            break
        found.append(token)
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_an_answer_is_the_likeliest_token_after_the_likeliest_token(batch_size):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    done: list[int] = []
    found = answer(model, tokenizer, questions(), {2}, 7, done.append, batch_size=batch_size)
    expected = [tokenizer.decode(greedy(model, q.prompt_ids, {2}, 7), skip_special_tokens=True) for q in questions()]
    assert found == expected
    assert done == [min(n, 3) for n in range(batch_size, 3 + batch_size, batch_size)]


def test_exact_match_is_the_share_of_equal_answers_white_space_around_them_aside():
    some = [Question([1], "a", r) for r in ("Paris", "seven days", " yes\n", "no")]
    assert exact_match([" Paris\n", "seven  days", "yes", "No"], some) == 0.5
    assert math.isnan(exact_match([], []))


def test_an_answer_too_few_is_an_error():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        exact_match(["a"], questions())
