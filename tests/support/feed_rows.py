"""Rows to feed, and what came of them."""

from __future__ import annotations


def rows(n: int, name: str = "w") -> list[dict]:
    return [{"prompt": f"Question {name} {i}?", "completion": f"{name}{i} " * (1 + i % 7)} for i in range(n)]


def said(examples) -> list[tuple]:
    return [(e.input_ids, e.labels, e.row.place, e.reference, e.answer_start, e.prompt_messages) for e in examples]
