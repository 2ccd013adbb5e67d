"""topcoat plan --measure, the side that asks: a run is begun in a process of its own and ends after its rehearsal.

The child (`probing_child.py`) is the run itself up to its first score, in a temporary folder: what it takes is what the
run would take. This side imports no torch.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields

from topcoat.errors import Problem, Refused, TopcoatError
from topcoat.recipe.schema import Recipe


@dataclass(frozen=True)
class Probe:
    """What two micro-steps on the longest rows took."""

    measured_bytes: int
    """The high-water mark of the process; on a GPU what torch reserved."""
    predicted_bytes: int
    """The bill that the run made before its first step, with nothing measured in it."""
    micro_step_seconds: float
    """Forward and backward of the largest micro batch, the second time."""
    micro_step_tokens: int
    """Its positions."""
    rows: int
    mean_tokens: float
    longest_tokens: int
    labelled: float
    """Share of the tokens that are trained."""
    steps: int
    device: str


def probe_in_child(recipe: Recipe, say: Callable[[str], None]) -> Probe:
    """Begin `recipe` in a child process and learn what its largest micro batch takes.

    Raises TopcoatError for what the run would be refused for, Refused where it does not fit.
    """
    say("measuring: the model is loaded in a process of its own, for two micro-steps on the longest rows")
    done = subprocess.run(
        [sys.executable, "-m", "topcoat.runs.probing_child"],
        input=json.dumps(recipe.model_dump(mode="json")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode == -signal.SIGKILL:
        raise Refused(
            "the probe was ended by the system, as it does when memory runs out",
            "topcoat plan --measure",
            "plan without --measure, and take the smallest change that it names",
        )
    lines = done.stdout.splitlines()
    found = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    if "problems" in found:
        kind = Refused if found["refused"] else TopcoatError
        raise kind.gather([Problem(**problem) for problem in found["problems"]])
    if done.returncode or not found:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise TopcoatError(
            f"the probe ended with exit code {done.returncode}: {last}",
            "topcoat plan --measure",
            "topcoat train with the same recipe shows what is wrong",
        )
    return Probe(**{field.name: found[field.name] for field in fields(Probe)})
