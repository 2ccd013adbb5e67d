"""Measure Topcoat beside its peers, and write every step into bench/results/.

    python -m bench.run cpu                                        all workloads, on a quiet machine
    python -m bench.run cpu --workloads 135m-4x512 --contenders peft-bf16 topcoat-none --rounds 3
    python -m bench.run gpu

The peers live in an environment of their own, which `make bench-cpu` builds. Rows are merged into the file one by one:
what was measured before an interruption is kept, and a later run replaces the rows that it measures again.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.contenders import CONTENDERS
from bench.machine import Watch, wait_until_quiet
from bench.results import merge, read, write
from bench.rounds import Measurement, measure, measure_apart
from bench.workloads import DEFAULTS, SUITES, Workload
from topcoat.planning.machine import available_memory_bytes, machine, usable_cores

HERE = Path(__file__).parent
ROUNDS = {"cpu": 50, "gpu": 5}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=list(SUITES))
    parser.add_argument("--workloads", nargs="+", metavar="NAME", help="; ".join(SUITES["cpu"] | SUITES["gpu"]))
    parser.add_argument("--contenders", nargs="+", metavar="NAME", choices=list(CONTENDERS), help=", ".join(CONTENDERS))
    parser.add_argument("--all", action="store_true", help="also the contenders known to be behind")
    parser.add_argument("--rounds", type=int, help=f"most turns that the contenders take {ROUNDS}")
    parser.add_argument("--steps", type=int, default=10, help="GPU: timed steps in one turn (%(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=10, help="CPU: a workload's time of taking turns (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="one round: shows that all run, and no speed")
    parser.add_argument("--now", action="store_true", help="measure while other processes are busy")
    parser.add_argument("--wait-minutes", type=float, default=60, help="longest wait for a quiet machine")
    parser.add_argument("--references-only", action="store_true", help="prepare models, data and references, then end")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--memory-gib", type=float, help="GPU: memory every contender may take, for equal budgets")
    parser.add_argument("--output", type=Path, help="the file of results (bench/results/SUITE.json)")
    parser.add_argument("--cache", type=Path, default=HERE / ".cache")
    parser.add_argument("--peers-python", default=str(HERE / ".venv" / "bin" / "python"))
    parser.add_argument("--unsloth-python", default=str(HERE / ".venv-unsloth" / "bin" / "python"))
    options = parser.parse_args(argv)
    unknown = [name for name in options.workloads or [] if name not in SUITES[options.suite]]
    if unknown:
        parser.error(f"no workload {', '.join(unknown)}; there are {', '.join(SUITES[options.suite])}")
    options.workloads = options.workloads or list(DEFAULTS[options.suite])
    options.rounds = options.rounds or ROUNDS[options.suite]
    if options.memory_gib and options.suite != "gpu":
        parser.error("--memory-gib caps what torch may allocate on a GPU; there is no such cap on a CPU")
    budget = f"-{options.memory_gib:g}gib" if options.memory_gib else ""  # equal memory is a table of its own
    options.output = options.output or HERE / "results" / f"{options.suite}{budget}.json"
    if options.quick:
        options.rounds, options.minutes, options.steps = 1, 1.0, 1
    return options


def chosen(workload: Workload, options: argparse.Namespace) -> list[str]:
    """Names of the contenders of this run, peers first."""
    names = [*workload.contenders, *(workload.extra if options.all else ())]
    if options.contenders:
        names = [name for name in [*workload.contenders, *workload.extra] if name in options.contenders]
    if not Path(options.unsloth_python).exists():
        left = [name for name in names if CONTENDERS[name].side == "unsloth"]
        if left:
            print(f"{', '.join(left)} left out: {options.unsloth_python} is not there")
        names = [name for name in names if name not in left]
    return sorted(names, key=lambda name: CONTENDERS[name].is_ours)


def require_gpu(suite: str) -> None:
    """Ends here where a GPU suite has none. torch is asked in a process of its own: this one stays small."""
    if suite != "gpu":
        return
    code = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    if subprocess.run([sys.executable, "-c", code], check=False).returncode:
        sys.exit("bench gpu needs a CUDA GPU, and torch finds none here (torch.cuda.is_available() is false)")


def ceiling(suite: str, threads: int) -> float:
    """GFLOP/s of one large bf16 product, measured now in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "bench.ceiling", suite]
    done = subprocess.run(command, cwd=HERE.parent, env=environment, check=True, capture_output=True, text=True)
    found: float = json.loads(done.stdout)["gflops"]
    return found


def commit() -> str | None:
    """The commit that is measured, "+" behind it where files differ from it; None outside of a repository."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=HERE.parent, check=False, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    found = git("rev-parse", "--short=12", "HEAD")
    return (found + ("+" if git("status", "--porcelain", "--", "src", "bench") else "")) or None


def environment(when: str, options: argparse.Namespace) -> dict[str, Any]:
    """The machine and the versions on both sides."""
    listing = [options.peers_python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    peers = subprocess.run(listing, check=True, capture_output=True, text=True).stdout
    return {
        "when": when,
        "commit": commit(),
        "waited_for_quiet": not options.now,
        "kernel": platform.release(),
        "threads": options.threads,
        "load_average": os.getloadavg(),
        "machine": machine(HERE, ask_torch=False).as_json(),
        "peers": {package["name"]: package["version"] for package in json.loads(peers)},
    }


def prepared(
    options: argparse.Namespace, keep: Callable[[dict[str, Any]], None], say: Callable[[str], None]
) -> list[Measurement]:
    """The measurements of this run, with everything made that their contenders load."""
    command = [sys.executable, "-m", "bench.prepare", options.suite, *options.workloads, "--cache", str(options.cache)]
    if subprocess.run(command, cwd=HERE.parent, check=False).returncode:
        sys.exit("what the contenders load could not be made; see above")
    return [
        Measurement(
            workload=SUITES[options.suite][name],
            pythons={"topcoat": sys.executable, "peers": options.peers_python, "unsloth": options.unsloth_python},
            cache=options.cache.absolute(),
            device="cuda" if options.suite == "gpu" else "cpu",
            threads=options.threads,
            rounds=options.rounds,
            minutes=options.minutes,
            keep=keep,
            memory_cap_bytes=int(options.memory_gib * 2**30) if options.memory_gib else None,
            free_bytes=available_memory_bytes() if options.suite == "cpu" else None,
            say=say,
        )
        for name in options.workloads
    ]


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    require_gpu(options.suite)
    if not Path(options.peers_python).exists():
        sys.exit(f"{options.peers_python} is not there: make bench/.venv/.installed builds the peers' environment")
    if importlib.util.find_spec("topcoat") is None:
        sys.exit("topcoat is not installed in this environment: make, then .venv/bin/python -m bench.run")
    say = partial(print, flush=True)
    results = read(options.output, options.suite) | {"memory_gib": options.memory_gib}
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

    def keep(row: dict[str, Any]) -> None:
        merge(results, {**row, "run": when})
        write(options.output, results)

    runs = prepared(options, keep, say)
    for run in runs:
        run.make_reference()
    if options.references_only:
        return
    if not options.now:
        wait_until_quiet(options.wait_minutes)
    whole = Watch.begin()
    facts = {"environment": environment(when, options), "ceiling": {"before": ceiling(options.suite, options.threads)}}
    results["runs"][when] = facts
    say(f"a matrix product reaches {facts['ceiling']['before']:.0f} GFLOP/s on {options.threads} threads")
    for run in runs:
        names = chosen(run.workload, options)
        if options.suite == "gpu":
            measure_apart(run, names, options.steps)
        else:
            measure(run, names)
    facts["ceiling"]["after"] = ceiling(options.suite, options.threads)
    facts["environment"]["steal_s"] = whole.end()["steal_s"]
    write(options.output, results)
    say(f"written to {options.output}")


if __name__ == "__main__":
    main()
