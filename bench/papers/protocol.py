"""What an experiment is: its place in the literature, its protocol, how it is run, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from bench.papers.intervals import Line

if TYPE_CHECKING:
    from bench.papers.lab import Lab

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows under a header; None is an empty cell."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def as_json(self) -> dict[str, Any]:
        """For the file of results."""
        return asdict(self)


@dataclass(frozen=True)
class Chart:
    """One half of a plot. Bars: name -> height. Lines: name of a line -> its points (x, y)."""

    title: str
    bars: dict[str, float] = field(default_factory=dict)
    lines: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    x: str = ""
    log: bool = False
    """Whether x of the lines is logarithmic."""

    def as_json(self) -> dict[str, Any]:
        """For the file of results."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """What one run of an experiment found."""

    lines: Sequence[Line]
    table: Table
    chart: Chart
    figures: dict[str, Any] = field(default_factory=dict)
    """Whatever else is worth keeping."""

    @property
    def passed(self) -> bool:
        """Whether every line was reached."""
        return all(line.passed for line in self.lines)


@dataclass(frozen=True)
class Experiment:
    """One paper's result in shape: protocol and pass lines stand in the module's own text."""

    name: str
    section: str
    """Of the specification of methods."""
    title: str
    source: str
    """The paper and its table."""
    protocol: str
    """Model, data, rows, steps, rates and seeds, for the page."""
    paper: Table
    paper_chart: Chart
    run: Callable[[Lab], Outcome]
    minutes: int
    """Estimated on two quiet cores."""
    notes: str = ""
    """What was found about the reason of a miss, or must be known to read the figures."""
