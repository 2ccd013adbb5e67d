"""Predicted and measured peak memory, and time of a step, over a grid of runs, each in a fresh process.

    python -m bench.plan.run [--coarse] [--only TEXT] [--again] [--keep]

Of every point `topcoat plan` is asked for the peak, then `topcoat train` runs two steps of the same recipe, and its
high-water mark of resident memory is what the kernel tells of the process that ended (ru_maxrss). A row stays in
bench/plan/results until the sources that decide memory, the point or torch change; predictions are made anew
every time. `--keep` keeps rows of other sources. One process at a time, no torch in this one. A plan gives the time of
a step as a span; its middle is held to the faster of the steps, in rows that nobody disturbed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.machine import QUIET, Watch
from bench.plan.points import COARSE, GRID, Point
from topcoat.planning.machine import machine

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "bench" / ".cache"
RESULTS = Path(__file__).parent / "results"
DECIDE = ("adapters", "data", "kernels", "model", "quant", "runs", "training")
"""Folders of the package whose code decides how much memory a run takes."""
LIMIT = 14 * 2**30
"""Bytes; a point that is predicted to take more is left out."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """A command line that was run."""

    code: int
    text: str
    """Standard output."""
    peak: int
    """High-water mark of resident memory, bytes."""
    seconds: float
    busy: float
    """Cores that it kept busy, on average."""


class Failed(Exception):
    """A command that ended with an error; the message is the end of what it said."""


def sources() -> str:
    """Digest of the code that decides memory."""
    digest = hashlib.sha256()
    for folder in DECIDE:
        for file in sorted((ROOT / "src" / "topcoat" / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def digest_of(point: Point) -> str:
    """Digest of what a point asks for."""
    return hashlib.sha256(json.dumps(point.recipe("", "", "")).encode()).hexdigest()[:16]


def topcoat(arguments: Sequence[str], log: Path) -> Ended:
    """Run the command line."""
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with log.open("a") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "topcoat.cli.main", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    busy = (usage.ru_utime + usage.ru_stime) / seconds
    return Ended(process.returncode, text, usage.ru_maxrss * 1024, seconds, busy)


def predict(recipe: Path, log: Path) -> Row:
    """What `topcoat plan` says. Raises Failed where it says nothing."""
    ended = topcoat(["plan", str(recipe), "--device", "cpu", "--json"], log)
    if ended.code not in (0, 1):
        raise Failed(f"topcoat plan {recipe} ended with {ended.code}: {ended.text[-600:]}{log.read_text()[-600:]}")
    found: Row = json.loads(ended.text)
    return {
        "predicted_bytes": found["peak_bytes"],
        "predicted_step_s": found["step_seconds"],
        "lines": {line["name"]: line["bytes"] for line in found["lines"]},
        "phases": found["phases"],
    }


def measure(recipe: Path, output: Path, log: Path) -> Row:
    """Train once and learn the peak and the time of a step. Raises Failed where it does not finish."""
    watch = Watch.begin([])
    ended = topcoat(["train", str(recipe)], log)
    if ended.code:
        raise Failed(f"topcoat train {recipe} ended with {ended.code}: {ended.text[-600:]}{log.read_text()[-600:]}")
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [row["tokens"] / row["tokens_per_s"] for row in rows if "tokens_per_s" in row]
    plan = json.loads((output / "plan.json").read_text())
    return {
        "measured_bytes": ended.peak,
        "started_bytes": plan["peak_bytes"],
        "step_s": min(steps),
        "tokens": max(row["tokens"] for row in rows if "tokens" in row),
        "seconds": round(ended.seconds, 1),
        "others_cores": round(max(0.0, watch.end()["other_load"] - ended.busy), 3),
    }


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Median and worst of the errors' sizes: of memory over all rows, of time over those of a quiet machine."""
    found = {}
    for name in ("error", "time_error"):
        errors = [abs(row[name]) for row in rows if row.get(name) is not None]
        if errors:
            found |= {f"median_{name}": statistics.median(errors), f"worst_{name}": max(errors)}
    return found


def time_error(row: Row) -> float | None:
    """The middle of the planned span over the faster step, less 1; None where others computed at the same time."""
    if "step_s" not in row or row.get("others_cores", QUIET) >= QUIET:
        return None
    return float(statistics.mean(row["predicted_step_s"]) / row["step_s"] - 1)


def results_here() -> Path:
    """The results of this kind of processor: with AMX code of ours multiplies, elsewhere oneDNN."""
    return RESULTS / ("cpu-amx.json" if "amx_bf16" in machine(ask_torch=False).cpu_features else "cpu.json")


def write(rows: Sequence[Row], path: Path, said: str | None = None) -> None:
    """The whole file at once: an interrupted write leaves the old one. `said` is a word on rows of earlier sources."""
    facts = machine(ask_torch=False)
    here = {"cpu": facts.cpu, "cores": facts.usable_cores, "memory_bytes": facts.memory_bytes}
    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    found = {"points": len(rows), **summary(rows), "machine": here, "versions": versions}
    found |= ({"said": said} if said else {}) | {"rows": list(rows)}
    beside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def read(path: Path) -> dict[str, Row]:
    """Name -> row of what was measured before."""
    return {row["name"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}


def prepared(point: Point, cache: Path) -> tuple[Path, Path, Path]:
    """Recipe, output and log of a point; its model and rows are made in a process of their own, for they need torch."""
    folder = cache / "plan" / point.name.replace(" ", "_").replace("/", "_")
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "bench.plan.models", point.model, str(point.length), str(cache)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    model, data = done.stdout.splitlines()[-2:]
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(point.recipe(model, data, str(folder / "run"))))  # JSON is YAML
    return recipe, folder / "run", folder / "log"


def grid(points: Sequence[Point], path: Path, *, again: bool, keep: bool, cache: Path = CACHE) -> None:
    """Measure what has not been measured; write after every point."""
    found = read(path)
    said = json.loads(path.read_text()).get("said") if path.exists() else None
    code = sources()
    rows: list[Row] = []
    for point in points:
        recipe, output, log = prepared(point, cache)
        log.write_text("")
        row = {"name": point.name, **predict(recipe, log)}
        old = found.get(point.name, {})
        inputs = digest_of(point)
        same = old.get("torch") == version("torch") and old.get("inputs", inputs) == inputs
        same = same and (keep or old.get("sources") == code)
        if old and same and not again:
            row = {**old, **row}
        elif row["predicted_bytes"] > LIMIT:
            print(f"{point.name}: left out, it would take {row['predicted_bytes'] / 2**30:.1f} GiB", flush=True)
            continue
        else:
            shutil.rmtree(output, ignore_errors=True)
            try:
                row |= {**measure(recipe, output, log), "sources": code, "inputs": inputs}
                row["torch"] = version("torch")
            except Failed as error:
                print(f"{point.name}: {error}", flush=True)
                continue
            shutil.rmtree(output)
        row |= {"error": row["predicted_bytes"] / row["measured_bytes"] - 1, "time_error": time_error(row)}
        print(
            f"{row['name']:44} predicted {row['predicted_bytes'] / 1e6:7,.0f} MB  measured "
            f"{row['measured_bytes'] / 1e6:7,.0f} MB  {row['error']:+6.1%}  "
            f"{'' if row['time_error'] is None else format(row['time_error'], '+6.1%')}",
            flush=True,
        )
        found[point.name] = row
        rows.append(row)
        earlier = any(old.get("sources") != code for old in found.values())
        write(list(found.values()), path, said if earlier else None)
    print({name: f"{value:.1%}" for name, value in summary(rows).items()})


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coarse", action="store_true", help="the twelve points that take minutes")
    parser.add_argument("--only", default="", help="points whose name holds this text")
    parser.add_argument("--again", action="store_true", help="measure anew what was measured")
    parser.add_argument("--keep", action="store_true", help="keep rows that other sources measured")
    parser.add_argument("--results", type=Path, default=None, help="file to write")
    options = parser.parse_args(argv)
    points = [point for point in (COARSE if options.coarse else GRID) if options.only in point.name]
    grid(points, options.results or results_here(), again=options.again, keep=options.keep)


if __name__ == "__main__":
    main()
