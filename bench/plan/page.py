"""The plots and the tables of the grid for docs/plan-accuracy.md, from the files of bench/plan/results.

python -m bench.plan.page [--results FOLDER] [--docs FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from topcoat.units import show_bytes

ROOT = Path(__file__).parents[2]
MARKS = {"lora": "o", "full": "s", "dora": "^", "ia3": "v"}
SAME, POINTS = "#90a4ae", "#00796b"

INTRODUCTION = """# How exact plans are

`topcoat plan` predicts the peak memory of a run from the model's shapes alone. Here every prediction stands beside the
high-water mark of resident memory of a fresh process that ran the same recipe: loading, two steps after the largest
micro batch (twenty where the name says so), and saving. The models are SmolLM2-135M, and shapes of well-known models
with random weights and a tokenizer of their vocabulary's size.

To measure on your machine: `make bench-plan`. It keeps what it has measured, so it can be stopped and started; all rows
are in `bench/plan/results`, and this page is made from them by `python -m bench.plan.page`.

The hand-written blocks multiply in code of topcoat's own on a processor with AMX, and through oneDNN on others: the
grid is measured on one of each kind.
"""
TITLES = {"cpu": "A processor without AMX", "cpu-amx": "A processor with AMX"}
"""Results file -> its heading, in the order of the page."""


def page(found: Mapping[str, dict[str, Any]]) -> str:
    """The whole page, of results by the names of their files."""
    return INTRODUCTION + "".join(_section(name, found[name]) for name in TITLES if name in found)


def _section(name: str, results: dict[str, Any]) -> str:
    rows = results["rows"]
    machine = results["machine"]
    parts = [
        f"\n## {TITLES[name]}\n",
        f"\n{results['said']}\n" if "said" in results else "",
        f"\n{machine['cpu']}, {machine['cores']} cores, torch {results['versions']['torch']}: {len(rows)} points, "
        f"median error {results['median_error']:.1%}, worst {results['worst_error']:.1%}.\n",
        f"\n![Predicted and measured peak memory](images/plan-{name}.svg)\n",
        _of_time(results),
        "\n| model, method, tokens x examples | predicted | measured | error | seconds a step, planned | measured |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n",
    ]
    for row in rows:
        cells = (
            show_bytes(row["predicted_bytes"]),
            show_bytes(row["measured_bytes"]),
            f"{row['error']:+.1%}",
            "{:.2f} to {:.2f}".format(*row["predicted_step_s"]),
            "" if row["time_error"] is None else f"{row['step_s']:.2f}",
        )
        parts.append(f"| {row['name']} | {' | '.join(cells)} |\n")
    return "".join(parts)


def _of_time(results: dict[str, Any]) -> str:
    """What there is to say of the time of a step."""
    if "median_time_error" not in results:
        return ""
    quiet = sum(row["time_error"] is not None for row in results["rows"])
    errors = "off by {median_time_error:.0%} in the median, by {worst_time_error:.0%} at worst".format(**results)
    return (
        f"\nThe time of a step, where nothing else on the machine disturbed it ({quiet} rows): the middle of the "
        f"planned span is {errors}. The factors behind it were fitted to these very rows; `python -m bench.plan.fit` "
        "says how far each is off by the factors of all the others.\n"
    )


def plot(results: dict[str, Any], path: Path) -> None:
    """Predicted against measured, both on logarithmic axes, as an SVG that is the same for the same results."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullFormatter

    rows = results["rows"]
    sizes = [row[name] / 2**30 for row in rows for name in ("measured_bytes", "predicted_bytes")]
    low, high = min(sizes) / 1.1, max(sizes) * 1.1
    with matplotlib.rc_context({"svg.hashsalt": "topcoat", "svg.fonttype": "none", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(6, 5), layout="constrained")
        axes.fill_between([low, high], [0.95 * low, 0.95 * high], [1.05 * low, 1.05 * high], color=SAME, alpha=0.25)
        axes.plot([low, high], [low, high], color=SAME, linewidth=1, label="equal; the band is 5 %")
        for method, mark in MARKS.items():
            chosen = [row for row in rows if row["name"].split()[1] == method]
            if chosen:
                x, y = ([row[name] / 2**30 for row in chosen] for name in ("measured_bytes", "predicted_bytes"))
                axes.scatter(x, y, marker=mark, s=22, color=POINTS, alpha=0.8, linewidth=0, label=method)
        ticks = [2**n for n in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)]
        axes.set(xscale="log", yscale="log")  # before the ticks, which it would set back
        for axis, name in ((axes.xaxis, "measured"), (axes.yaxis, "predicted")):
            axis.set_ticks(ticks)
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
            axis.set_label_text(f"{name} peak, GiB")
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "plan" / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    options = parser.parse_args(argv)
    files = {name: options.results / f"{name}.json" for name in TITLES}
    found = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
    for name, results in found.items():
        plot(results, options.docs / "images" / f"plan-{name}.svg")
    (options.docs / "plan-accuracy.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
