"""The end of a run for people: scores and answers before and after, where the files are, what to type next."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from topcoat.runs.folder import RunFolder, read_json
from topcoat.runs.run import Result
from topcoat.runs.scoring import Scores


def score_table(result: Result) -> RenderableType:
    """Base against adapter; of labels and numbers, which a base has no head for, the best constant answer. One line
    where nothing was held out."""
    table = Table(title="scores on the held-out rows", title_justify="left")
    table.add_column("")
    table.add_column("constant" if result.tuned.figures else "base", justify="right")
    table.add_column("tuned", justify="right")
    for name, show in SHOWN.items():
        before, after = (scores.value(name) for scores in (result.base, result.tuned))
        if before is not None or after is not None:
            table.add_row(name.replace("_", " "), show(before), f"[green]{show(after)}[/]")
    return (
        table if table.row_count else Text("no scores: no rows are held out (data.validation: 0.1 holds out a tenth)")
    )


def comparison(folder: Path, most: int) -> RenderableType:
    """The first held-out prompts with the reference and both answers, side by side."""
    samples = read_json(RunFolder(folder).results)["samples"][:most]
    table = Table(show_lines=True, expand=True)
    for column in ("prompt", "before", "after", "reference"):
        table.add_column(column, ratio=1, overflow="fold")
    for sample in samples:
        right = sample["adapter"].strip() == sample["reference"].strip()
        table.add_row(
            Text(sample["prompt"]),
            Text(_short(sample["base"]), style="dim"),
            Text(_short(sample["adapter"]), style="green" if right else "yellow"),
            Text(sample["reference"]),
        )
    return table if samples else Group()


def next_steps(result: Result) -> Group:
    """Where the files are, and the commands that come next."""
    folder, whole = result.folder, result.adapter == RunFolder(result.folder).model
    typed = shlex.quote(str(folder))
    lines = [
        f"run      {folder}",
        f"{'model  ' if whole else 'adapter'}  {result.adapter}",
        f"report   {folder / 'report.html'}",
        "",
        "next",
        f"  topcoat chat {typed}      talk to it" + ("" if whole else "; /adapter off compares with the base"),
    ]
    if not whole and result.mergeable:
        lines.append(f"  topcoat merge {typed}     one model from base and adapter, proved")
    return Group(*map(Text, lines))


def scores_line(label: str, scores: Scores) -> str:
    """One line with what was measured."""
    found = {name: scores.value(name) for name in SHOWN}
    parts = [f"{name.replace('_', ' ')} {SHOWN[name](value)}" for name, value in found.items() if value is not None]
    return f"{label}: {', '.join(parts) or 'nothing to measure without validation rows'}"


def _short(text: str, most: int = 120) -> str:
    return text if len(text) <= most else text[:most] + " …"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


SHOWN = {
    "exact_match": _share,
    "perplexity": _number,
    "accuracy": _share,
    "macro_f1": _share,
    **dict.fromkeys(("mse", "mae", "r2", "pearson", "spearman"), _number),
}
"""Figure -> how it is shown."""
