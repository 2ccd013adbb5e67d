"""Finding: one thing a check has found, with the rows it is about, why it matters and what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from topcoat.data.checks.corpus import Corpus

Family = Literal["quantity", "diversity", "consistency", "quality", "balance", "length", "leaks"]


@dataclass(frozen=True)
class Finding:
    """`what` is a sentence with the count in it; `rows` are positions in the corpus, each with a word in `details`."""

    what: str
    why: str
    fix: str
    rows: list[int] = field(default_factory=list)
    details: dict[int, str] = field(default_factory=dict)
    """What it is in a row, shown beside its line."""
    drop: list[int] | None = None
    """Rows that --fix leaves out, where they are not all of `rows`."""
    elsewhere: list[tuple[str, int, str]] = field(default_factory=list)
    """(file, line, what it is) of rows of another file, such as the validation rows."""
    count: int | None = None
    """How many, where they are not `rows`."""
    stops: bool = False
    """Whether a run stops at it, whatever its policy is."""


def count(n: int, one: str, many: str) -> str:
    """`n` with the words for one or for many: "1 row repeats", "2,000 rows repeat"."""
    return f"{n:,} {one if n == 1 else many}"


class Check(NamedTuple):
    """One entry of CHECKS. `rewrite` mends a text; without one, and with `drops`, --fix leaves the rows out."""

    find: Callable[[Corpus], list[Finding]]
    family: Family
    cheap: bool = True
    drops: bool = False
    rewrite: Callable[[str], str] | None = None
