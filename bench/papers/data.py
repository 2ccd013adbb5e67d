"""The rows and texts of the experiments: cuts of ../shared/data, written once as files that the product reads.

A cut is the first rows of a file (their order is random already), and its name says how many: e2e-1000. E2E rows become
an instruction with the meaning representation as its input; a validation meaning comes with its first three references.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

SHARED = Path(__file__).parents[3] / "shared" / "data"
TASK = "Describe this restaurant in one sentence."
REFERENCES = 3
TEXTS = {"wikitext2": "wikitext2_valid.txt", "shakespeare": "tiny_shakespeare.txt"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Cut:
    """The first rows of a set's two parts."""

    name: str
    train: int
    validation: int

    def say(self) -> str:
        """For the page."""
        return (
            f"the first {self.train:,} rows of {self.name}_train, loss on {self.validation} of {self.name}_validation"
        )


def _plain(row: Row) -> Iterator[Row]:
    yield row


def _meaning(row: Row) -> Iterator[Row]:
    references = row.get("references") or [row["reference"]]
    for reference in references[:REFERENCES]:
        yield {"instruction": TASK, "input": row["meaning_representation"], "output": reference}


READERS = {"alpaca": _plain, "banking77": _plain, "e2e": _meaning, "gsm8k": _plain, "lfs_instruct": _plain}


def text_file(name: str) -> Path:
    """A plain text. Raises SystemExit where the data is not there."""
    return _require(SHARED / TEXTS[name])


def rows_file(name: str, part: str, count: int, folder: Path) -> Path:
    """The first `count` rows of a set's train or validation part, as instruction, input and output."""
    out = folder / "data" / f"{name}-{part}-{count}.jsonl"
    if not out.exists():
        lines = _require(SHARED / f"{name}_{part}.jsonl").read_text(encoding="utf-8").split("\n")
        rows = (row for line in lines if line for row in READERS[name](json.loads(line)))
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in islice(rows, count))
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = out.with_suffix(".tmp")
        beside.write_text(text, encoding="utf-8")
        beside.replace(out)
    return out


def _require(path: Path) -> Path:
    if not path.is_file():
        raise SystemExit(f"{path} is not there; this experiment reads it")
    return path
