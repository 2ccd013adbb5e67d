"""DataReport: what became of the rows, for people (rich) and for the run's receipt (a dict)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from topcoat.data.examples import Places
from topcoat.data.lines import escaped
from topcoat.units import show_percent

SHOWN = 5  # row numbers printed for each thing that happened
KEPT = 1000  # row numbers kept in the dict
FEW, MANY = 0.005, 0.95  # shares of trained tokens outside which something is usually wrong

EVENTS = {
    "dropped_overlong": "longer than max_length: left out",
    "truncated": "longer than max_length: end cut off, stop token included",
    "split": "longer than max_length: cut into several examples",
    "windows": "longer than max_length: cut into windows, no token lost",
    "no_target": "no trained token: left out",
    "empty_answer": "an answer is empty: only its stop token is trained",
    "special_text": "text holds special tokens: kept as text",
    "reshaped": "the chat template leaves out or rewrites part of an answer",
    "leaked": "validation rows that are also training rows",
}
WARNED = ("truncated", "dropped_overlong", "no_target", "empty_answer", "reshaped", "leaked")


@dataclass
class DataReport:
    """Counts, token totals, and what was dropped or changed, with the rows it happened to."""

    files: list[str]
    format: str
    template: str
    stop_tokens: list[str]
    loss_on: str
    overlong: str
    rows: int = 0
    train_examples: int = 0
    validation_examples: int = 0
    tokens: int = 0
    """Of the training examples."""
    target_tokens: int = 0
    """Of the training examples: those that are trained."""
    lost_target_tokens: int = 0
    """Answer tokens lost to max_length."""
    longest: int = 0
    longest_row: str = ""
    max_length: int = 0
    events: dict[str, Places] = field(default_factory=lambda: {name: Places.none() for name in EVENTS})
    """What happened (a key of EVENTS) -> the places of the rows, such as "train.jsonl line 17"."""
    notes: list[str] = field(default_factory=list)

    def note_windows(self, documents: int) -> None:
        """Say how plain texts became windows."""
        if self.events["windows"]:
            examples = self.train_examples + self.validation_examples
            cut = f"documents: {documents:,}, in {examples:,} windows of at most {self.max_length:,} tokens"
            self.notes.append(f"{cut}; each begins with the last token of the one before, so no token goes untrained")

    @property
    def share_trained(self) -> float:
        """Target tokens / tokens, of the training examples."""
        return self.target_tokens / self.tokens if self.tokens else 0.0

    def warnings(self) -> list[str]:
        """Sentences about what the user should look at."""
        said = []
        for name in WARNED:
            rows = self.events[name]
            if rows:
                said.append(f"{len(rows):,} rows: {EVENTS[name]} (first: {rows[0]})")
        share = self.share_trained
        if self.tokens and not FEW <= share <= MANY and self.format != "text" and self.loss_on != "all":
            said.append(f"{show_percent(share)} of the tokens are trained; usual is 0.5 to 95 %: look at the preview")
        return said

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        events = {name: {"count": len(rows), "rows": rows[:KEPT]} for name, rows in self.events.items() if rows}
        plain = {key: value for key, value in vars(self).items() if key != "events"}
        return {**plain, "share_trained": self.share_trained, "events": events, "warnings": self.warnings()}

    def __rich__(self) -> RenderableType:
        table = Table(title="data", show_header=False, title_justify="left")
        table.add_row("files", ", ".join(map(escaped, self.files)))
        table.add_row("format", f"{self.format}, {self.rows:,} rows")
        if self.format != "text":
            table.add_row("template", f"{self.template}; answers end with {' or '.join(self.stop_tokens) or 'eos'}")
        table.add_row("examples", f"{self.train_examples:,} to train, {self.validation_examples:,} to validate")
        trained = f"{self.target_tokens:,} trained ({show_percent(self.share_trained)}, loss_on {self.loss_on})"
        table.add_row("tokens", f"{self.tokens:,}, of them {trained}")
        table.add_row("longest", f"{self.longest:,} tokens ({self.longest_row}); max_length {self.max_length:,}")
        for name, rows in self.events.items():
            if rows:
                more = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
                table.add_row(f"{len(rows):,} rows", f"{EVENTS[name]}: {', '.join(rows[:SHOWN])}{more}")
        for note in self.notes:
            table.add_row("note", note)
        lines = [Text(f"warning: {warning}", style="yellow") for warning in self.warnings()]
        return Group(table, *lines)
