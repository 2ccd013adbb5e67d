"""How many rows and tokens a data file has, about: lines and bytes of its beginning, and its size. No tokenizer.

A token is taken to be 4 bytes of text, the rule of thumb for English and byte-level vocabularies of 32,000 to 256,000
entries; code and other scripts take fewer bytes a token. The exact lengths are those of `topcoat data check`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

BYTES_PER_TOKEN = 4
SAMPLE_BYTES = 2**20
LOOKED_AT = 500
"""Rows of the beginning whose answers are told from their prompts."""
ANSWERS = ("output", "completion", "response", "answer", "chosen", "target")
"""Columns that are trained in rows that have others beside them."""
TURNS = {"messages": ("role", "content"), "conversations": ("from", "value")}
SPEAKERS = ("assistant", "gpt")
LINE_OVERHEAD = 40
"""Bytes of a JSON line that are keys and quotes, not text."""


@dataclass(frozen=True)
class DataSize:
    """Rows of all training files, and tokens of a row."""

    rows: int
    mean_tokens: float
    longest_tokens: int
    says: str
    """Where the figures are from."""
    labelled: float | None = None
    """Share of the text that answers; None where the rows do not tell."""


def data_size(files: list[str]) -> DataSize | None:
    """About how much the files hold; None where they are not here or not line by line (.jsonl)."""
    rows = tokens = longest = 0
    answered: list[tuple[int, int]] = []
    for name in files:
        path = Path(name)
        if path.suffix != ".jsonl" or not path.is_file():
            return None
        size = path.stat().st_size
        with open(path, "rb") as file:
            sample = file.read(SAMPLE_BYTES)
        if b"\0" in sample:  # no text in UTF-8: what its lines hold is not known
            return None
        lines = [line for line in sample.split(b"\n") if line.strip()]
        if len(sample) < size and len(lines) > 1:
            lines.pop()  # cut short
        if not lines:
            return None
        sampled = sum(map(len, lines)) + len(lines)
        share = size / sampled if len(sample) < size else 1.0
        rows += round(len(lines) * share)
        tokens += round(sum(_tokens(line) for line in lines) * share)
        longest = max(longest, *(_tokens(line) for line in lines))
        answered += [_answered(line) for line in lines[:LOOKED_AT]]
    says = f"about {rows:,} rows of {tokens / rows:,.0f} tokens, 4 bytes of text a token"
    answers, text = (sum(part) for part in zip(*answered, strict=True))
    return DataSize(rows, tokens / rows, longest, says, answers / text if answers else None)


def _tokens(line: bytes) -> int:
    return max(8, (len(line) - LINE_OVERHEAD) // BYTES_PER_TOKEN)


def _answered(line: bytes) -> tuple[int, int]:
    """Characters of a row's answers, and of all its text; (0, 0) where it is not known which are answers."""
    try:
        row = json.loads(line)
    except ValueError:
        return 0, 0
    if not isinstance(row, dict):
        return 0, 0
    for column, (role, content) in TURNS.items():
        turns = [turn for turn in row.get(column) or () if isinstance(turn, dict)]
        if turns:
            said = [(turn.get(role) in SPEAKERS, len(str(turn.get(content) or ""))) for turn in turns]
            return sum(n for answers, n in said if answers), sum(n for _, n in said)
    texts = {name: len(value) for name, value in row.items() if isinstance(value, str)}
    if set(texts) == {"text"}:
        return texts["text"], texts["text"]
    return sum(n for name, n in texts.items() if name in ANSWERS), sum(texts.values())
