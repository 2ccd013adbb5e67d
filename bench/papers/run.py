"""Reproduce what papers found, in shape, on a model of 135M parameters.

    python -m bench.papers.run formats            one experiment, its results in bench/papers/results/formats.json
    python -m bench.papers.run                    all of them
    python -m bench.papers.run formats --quick    a tiny model and a handful of steps: shows that it runs, no more

Every finished run of a model is kept in bench/.cache/papers, so what was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.papers.experiments import EXPERIMENTS
from bench.papers.lab import ROOT, Lab, Row, write_json
from bench.papers.protocol import Experiment, Outcome
from topcoat.planning.machine import machine

RESULTS = Path(__file__).parent / "results"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="; ".join(EXPERIMENTS))
    parser.add_argument("--quick", action="store_true", help="show that it runs; the results claim nothing")
    parser.add_argument("--seeds", type=int, help="at most so many seeds; the results say how many")
    parser.add_argument("--again", action="store_true", help="do what was done again")
    parser.add_argument("--at-once", type=int, help="jobs side by side, each with its share of the cores; one a core")
    parser.add_argument("--cache", type=Path, default=ROOT / "bench" / ".cache")
    parser.add_argument("--results", type=Path, help=f"folder of the results ({RESULTS.relative_to(ROOT)})")
    options = parser.parse_args(argv)
    unknown = [name for name in options.names if name not in EXPERIMENTS]
    if unknown:
        parser.error(f"no experiment {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}")
    options.names = options.names or list(EXPERIMENTS)
    if options.results is None:
        options.results = options.cache / "papers-quick" / "results" if options.quick else RESULTS
    return options


def environment(lab: Lab) -> dict[str, Any]:
    """The machine and the versions."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    return {
        "commit": commit.strip(),
        "kernel": platform.release(),
        "at_once": lab.at_once,
        "threads": lab.threads,
        "machine": machine(ROOT, ask_torch=False).as_json(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def results(experiment: Experiment, outcome: Outcome, lab: Lab, command: str) -> Row:
    """The file of one experiment."""
    jobs = list({job["job"]: job for job in lab.done}.values())
    return {
        "name": experiment.name,
        "section": experiment.section,
        "title": experiment.title,
        "quick": lab.quick,
        "passed": outcome.passed and not lab.quick,
        "lines": [line.as_json() for line in outcome.lines],
        "table": outcome.table.as_json(),
        "chart": outcome.chart.as_json(),
        "figures": outcome.figures,
        "seeds": sorted({job["seed"] for job in jobs if "seed" in job}),
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "seconds": round(sum(job.get("seconds", 0) for job in jobs) / lab.at_once, 1),
        "cpu_s": round(sum(job.get("cpu_s", 0) for job in jobs), 1),
        "busy_cores": max((job.get("busy_cores", 0.0) for job in jobs), default=0.0),
        "environment": environment(lab),
        "jobs": jobs,
    }


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    said = [f"--seeds {options.seeds}"] if options.seeds else []
    for name in options.names:
        experiment = EXPERIMENTS[name]
        lab = Lab(options.cache, options.quick, options.seeds, options.again)
        lab.at_once = options.at_once or lab.at_once
        print(
            f"{experiment.section} {experiment.title} (estimated: {experiment.minutes} minutes on two quiet cores)",
            flush=True,
        )
        began = time.monotonic()
        outcome = experiment.run(lab)
        command = " ".join(["python -m bench.papers.run", name, *said, *(["--quick"] if options.quick else [])])
        path = options.results / f"{name}.json"
        write_json(path, results(experiment, outcome, lab, command))
        for line in outcome.lines:
            print(f"  {line.verdict}: {line.wanted}: {line.found}")
        print(f"  {time.monotonic() - began:.0f} s; written to {path}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
