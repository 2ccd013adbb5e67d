"""docs/benchmarks.md and its plot, from bench/results/*.json: every row, with what was reached and what was not.

python -m bench.page [--results bench/results] [--docs docs]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.results import Row, counts, read
from bench.workloads import SUITES, Workload
from topcoat.units import show_bytes

ROOT = Path(__file__).parents[1]
TITLES = {"cpu": "On a CPU", "gpu": "On a GPU"}
LEAST_QLORA = 1 / 1.15  # QLoRA no more than 15 % slower than LoRA
OURS, PEERS, STOPPED = "#00796b", "#90a4ae", "#e0e0e0"

INTRODUCTION = """# Benchmarks

One optimizer step of a LoRA adapter (r 16 on all linears, no dropout, AdamW), by topcoat and by its peers: PEFT in a
plain loop, TRL's SFTTrainer, and both over bitsandbytes' NF4 weights. All load the same weights and the same adapter
start, and see the same tokens and labels in the same steps. Each runs in a process of its own; the best peer and
topcoat's recompute policies take turns, a step each, and a ratio is the median over the turns. A peer that was faster
before, alone, counts with that.

Before a timing counts, a contender's first step must have seen the right tokens and come out at the loss and, within
2 %, at the gradient norm of a float32 computation of one document at a time. Tokens are real ones, padding left out.
Peak memory is the whole process (on a GPU, what torch allocated). The share of the ceiling is the operations that the
step needs, recomputation included, per second, over those of one large bf16 product on the same machine.

To measure on your machine: `make bench-cpu` or `make bench-gpu`. Every step of every contender is in
`bench/results/`; this page is made from it by `python -m bench.page`.
"""
NO_GPU = """
## On a GPU

Nothing has been measured on a GPU yet. What is written for one is tested on a CPU, its kernels in Triton's interpreter;
`make bench-gpu` measures it.
"""
NOTHING = "\nNothing has been measured yet: there is no file in `bench/results/`.\n"


def page(
    results: Sequence[dict[str, Any]],
    profile: dict[str, Any] | None = None,
    flat: Sequence[dict[str, Any]] | None = None,
) -> str:
    """The whole page; `profile` is what `bench/profile.py` writes, `flat` what `bench/flat.py` does."""
    parts = [INTRODUCTION]
    for result in results:
        budget = result.get("memory_gib")
        equal = f", in {budget:g} GiB of memory each" if budget else ""
        parts.append(f"\n## {TITLES[result['suite']]}{equal}\n")
        parts += [f"\n{_machine(facts, _rows_of(result, when))}\n" for when, facts in result["runs"].items()]
        parts.append(f"\n![Tokens a second and peak memory](images/{_plot_of(result)})\n")
        parts.append("\n" + "\n".join(_figures(result)) + "\n")
        for workload, rows in _by_workload(result):
            parts.append(f"\n### {workload.title}\n\n" + "\n".join(_table(workload, rows)) + "\n")
        if profile is not None and result["suite"] == "cpu":
            parts.append("\n### Where the time goes\n\n" + "\n".join(_profile(profile)) + "\n")
        if flat and result["suite"] == "cpu":
            parts.append("\n### Time per token over a long run\n\n" + "\n".join(_flat(flat)) + "\n")
    if results and all(result["suite"] != "gpu" for result in results):
        parts.append(NO_GPU)
    return "".join(parts) if results else INTRODUCTION + NOTHING


def _plot_of(result: dict[str, Any]) -> str:
    budget = result.get("memory_gib")
    return f"benchmarks-{result['suite']}{f'-{budget:g}gib' if budget else ''}.svg"


def _by_workload(result: dict[str, Any]) -> Iterator[tuple[Workload, list[Row]]]:
    """Measured workloads in their own order, rows from the slowest to the fastest, failed ones last."""
    for workload in SUITES[result["suite"]].values():
        rows = [row for row in result["rows"] if row["workload"] == workload.name]
        if rows:
            yield workload, sorted(rows, key=lambda row: row.get("tokens_per_s", float("inf")))


def _rows_of(result: dict[str, Any], when: str) -> list[Row]:
    return [row for row in result["rows"] if row["run"] == when]


def _machine(facts: dict[str, Any], rows: Sequence[Row]) -> str:
    """Where and how quietly one run measured these rows."""
    environment, machine = facts["environment"], facts["environment"]["machine"]
    names = ("torch", "transformers", "peft", "trl", "bitsandbytes")
    versions = ", ".join(f"{name} {environment['peers'][name]}" for name in names if name in environment["peers"])
    loads = [step["other_load"] for row in rows for step in row["steps"] if step["round"] is not None]
    workloads = ", ".join(dict.fromkeys(row["workload"] for row in rows))
    sentences = [
        f"{machine['cpu']} ({', '.join(machine['cpu_features'])}), {environment['threads']} threads",
        f"{environment['when'][:10]}: {workloads}",
        f"Commit {environment['commit']}" if environment.get("commit") else "",
        f"A bf16 product reaches {' and '.join(f'{v:.0f}' for v in facts['ceiling'].values())} GFLOP/s (before, after)",
        f"Other processes used {statistics.median(loads):.2f} cores in the median step" if loads else "",
        f"The hypervisor took {environment['steal_s']:.1f} seconds" if "steal_s" in environment else "",
        f"Peers: {versions}",
    ]
    return " ".join(f"{sentence}." for sentence in sentences if sentence)


def _figures(result: dict[str, Any]) -> Iterator[str]:
    """What was to be reached, what was, and whether it is a miss."""
    yield "| to reach | best peer | reached | by | |"
    yield "| --- | --- | --- | --- | --- |"
    for workload, rows in _by_workload(result):
        ours = [row for row in rows if row["is_ours"] and counts(row) and row.get("speed_ratio")]
        if ours:
            yield from _figures_of(workload, ours, choose(workload, ours))
    for name, share in result.get("qlora_over_lora", {}).items():
        wanted = "QLoRA at most 15 % slower than LoRA, same rows"
        yield f"| {wanted} | | {share:.2f} of its speed | {name} | {_verdict(share >= LEAST_QLORA)} |"


def _figures_of(workload: Workload, ours: Sequence[Row], row: Row) -> Iterator[str]:
    """The lines of one workload, for which `row` stands."""
    by = row["contender"]
    if workload.least_speed is not None:
        wanted = f"{workload.name}: {workload.least_speed:g} times the speed"
        got = f"{row['speed_ratio']:.2f} times"
        if workload.most_memory is not None:
            wanted += f", {workload.most_memory:g} of the memory"
            got += f", {row['memory_ratio']:.2f}"
        yield f"| {wanted} | {row['best_peer']} | {got} | {by} | {_verdict(reached(workload, row))} |"
    for beginning, least in workload.least_versus:
        found = {name: v["speed_ratio"] for name, v in row["versus"].items() if name.startswith(beginning)}
        if found:
            best = min(found, key=found.__getitem__)
            wanted, hit = f"{workload.name}: {least:g} times the speed of {beginning}", found[best] >= least
            yield f"| {wanted} | {best} | {found[best]:.2f} times | {by} | {_verdict(hit)} |"
    if workload.least_share is not None:
        share, hit = row["share_of_ceiling"], row["share_of_ceiling"] >= workload.least_share
        yield f"| {workload.name}: {workload.least_share:.0%} of the ceiling | | {share:.0%} | {by} | {_verdict(hit)} |"
    for one in ours:
        if workload.most_bytes is not None and one["contender"] == workload.most_bytes[0]:
            wanted = f"{workload.name}: at most {show_bytes(workload.most_bytes[1])}"
            got, hit = show_bytes(one["peak_bytes"]), one["peak_bytes"] <= workload.most_bytes[1]
            yield f"| {wanted} | | {got} | {one['contender']} | {_verdict(hit)} |"


def choose(workload: Workload, ours: Sequence[Row]) -> Row:
    """The policy that stands for us: the fastest that reaches both figures, else the fastest."""
    return max(ours, key=lambda row: (reached(workload, row), row["speed_ratio"]))


def reached(workload: Workload, row: Row) -> bool:
    """True where one contender reaches the speed and the memory that were asked for."""
    fast = workload.least_speed is None or row["speed_ratio"] >= workload.least_speed
    return fast and (workload.most_memory is None or row["memory_ratio"] <= workload.most_memory)


def _profile(profile: dict[str, Any]) -> Iterator[str]:
    """The parts of a step."""
    step, floors = profile["step_s"], profile["floors"]
    yield f"{profile['says']}: {step:.2f} seconds a step (commit {profile['commit']}). The floor is what the operations"
    yield f"of a part take at the {profile['ceiling_gflops']:,} GFLOP/s of one large product.\n"
    yield "| part | seconds | share | floor |"
    yield "| --- | ---: | ---: | ---: |"
    for part, seconds in profile["parts"].items():
        floor = f"{floors[part]:.3f}" if part in floors else ""
        yield f"| {part} | {seconds:.3f} | {seconds / step:.0%} | {floor} |"
    yield f"| together | {step:.3f} | | {sum(floors.values()):.3f} |"


def _flat(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Whether a step costs the same after many steps, and with much data."""
    yield "`topcoat train` on a tiny model (`python -m bench.flat`): the median microseconds a token in the first and"
    yield "the last tenth of the steps. They are to stay within 10 %, over the run and from few rows to many.\n"
    yield "| rows | steps | first tenth | last tenth | last over first | over the first run |"
    yield "| ---: | ---: | ---: | ---: | ---: | ---: |"
    for run in runs:
        times, over = run["seconds_per_token"], run.get("over_first_run")
        first, last = (f"{1e6 * times[at]:.0f}" for at in (0, -1))
        beside = f"{over:.2f}" if over is not None else ""
        yield f"| {run['rows']:,} | {run['steps']:,} | {first} | {last} | {run['last_over_first']:.2f} | {beside} |"


def _verdict(hit: bool) -> str:
    return "reached" if hit else "**missed**"


def _table(workload: Workload, rows: Sequence[Row]) -> Iterator[str]:
    yield "| contender | tokens/s | times the best peer | peak memory | of the best peer's | of the ceiling | |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | --- |"
    for row in rows:
        if row.get("failed"):
            yield f"| {row['contender']} | | | | | | did not run: {_short(row['failed'])} |"
            continue
        best = any(other.get("best_peer") == row["contender"] for other in rows)
        cells = [
            row["contender"],
            f"{row['tokens_per_s']:,.0f}",
            f"{row['speed_ratio']:.2f}" if row.get("speed_ratio") else "",
            show_bytes(row["peak_bytes"]),
            f"{row['memory_ratio']:.2f}" if row.get("memory_ratio") else "",
            f"{row['share_of_ceiling']:.0%}" if "share_of_ceiling" in row else "",
            "the best peer" if best else _short("; ".join(row["gate"]["problems"])),
        ]
        yield f"| {' | '.join(cells)} |"


def _short(text: str) -> str:
    """The end of a long message, fit for a cell."""
    line = " ".join(text.split()).replace("|", "/").replace("<", "&lt;")
    return line if len(line) <= 160 else "… " + line[-160:]


def _figure(value: float) -> str:
    """1,359 or 4.86: three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plot(result: dict[str, Any], path: Path) -> None:
    """Two bar charts a workload, tokens a second and peak memory, as an SVG that is the same for the same results."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    groups = [(w, [row for row in rows if not row.get("failed")]) for w, rows in _by_workload(result)]
    heights = [len(rows) + 1.5 for _, rows in groups]
    with matplotlib.rc_context({"svg.hashsalt": "topcoat", "svg.fonttype": "none", "font.size": 9}):
        figure, axes = pyplot.subplots(
            *(len(groups), 2),
            figsize=(10, 0.28 * sum(heights) + 0.5),
            height_ratios=heights,
            squeeze=False,
            layout="constrained",
        )
        for (workload, rows), (speed, memory) in zip(groups, axes, strict=True):
            names = [row["contender"] for row in rows]
            colors = [(OURS if row["is_ours"] else PEERS) if counts(row) else STOPPED for row in rows]
            speed.barh(names, [row["tokens_per_s"] for row in rows], color=colors)
            speed.set_title(f"{workload.name}: tokens a second", loc="left", fontsize=9)
            memory.barh(names, [row["peak_bytes"] / 2**30 for row in rows], color=colors)
            memory.set_title("peak memory, GiB", loc="left", fontsize=9)
            memory.set_yticklabels([])
            for axis in (speed, memory):
                axis.bar_label(
                    axis.containers[0], fmt=lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}", padding=2
                )
                axis.margins(x=0.12)
                axis.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    options = parser.parse_args(argv)
    found = [read(options.results / f"{suite}.json", suite) for suite in SUITES]
    found += [read(file, "gpu") for file in sorted(options.results.glob("gpu-*gib.json"))]  # run.py: --memory-gib
    measured = [result for result in found if result["rows"]]
    for result in measured:
        plot(result, options.docs / "images" / _plot_of(result))
    profile = options.results / "profile.json"
    parts = json.loads(profile.read_text(encoding="utf-8")) if profile.exists() else None
    long = options.results / "flat.json"
    flat = json.loads(long.read_text(encoding="utf-8")) if long.exists() else None
    (options.docs / "benchmarks.md").write_text(page(measured, parts, flat), encoding="utf-8")


if __name__ == "__main__":
    main()
