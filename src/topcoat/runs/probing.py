"""topcoat plan --measure, the side that asks: a run is begun in a process of its own and ends after its rehearsal.

The child (`probing_child.py`) is the run itself up to its first score: what it takes is what the run would take. It
ends before a run writes anything into its folder. This side imports no torch.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from topcoat.errors import Problem, Refused, TopcoatError
from topcoat.planning.request import Request
from topcoat.planning.residuals import Residual
from topcoat.recipe.schema import Recipe
from topcoat.units import show_bytes, show_seconds

LIMIT_SECONDS = 30 * 60
"""Loading the model, checking the rows and two micro-steps; what takes longer has come to a stop."""


@dataclass(frozen=True)
class Probe:
    """What two micro-steps on the longest rows took."""

    measured_bytes: int
    """The high-water mark of the process during a micro-step; on a GPU what torch reserved."""
    predicted_bytes: int
    """What a plan says of the same step, with nothing measured in it."""
    micro_step_seconds: float
    """Forward and backward of the largest micro batch, the second time, and nothing else."""
    micro_step_tokens: int
    """Its positions."""
    rows: int
    mean_tokens: float
    longest_tokens: int
    labelled: float
    """Share of the tokens of all rows that are trained."""
    steps: int
    device: str

    @property
    def says(self) -> str:
        """What was found, in a line for the plan."""
        share = self.measured_bytes / self.predicted_bytes - 1
        return (
            f"measured: {show_bytes(self.measured_bytes)} at the peak of two micro-steps of "
            f"{self.micro_step_tokens:,} tokens, {share:+.1%} of what was predicted for them; "
            f"{self.micro_step_seconds:.3g} s a micro-step. Kept for later plans on this device"
        )

    def residual(self, model: str) -> Residual:
        """What later plans are corrected by."""
        return Residual(
            model=model,
            predicted_bytes=self.predicted_bytes,
            measured_bytes=self.measured_bytes,
            micro_step_seconds=self.micro_step_seconds,
            micro_step_tokens=self.micro_step_tokens,
        )

    def correct(self, request: Request, *, any_length: bool) -> Request:
        """`request` with the rows as they are, and with what was measured beside what is counted; `any_length` where
        the longest row decides how long examples may be."""
        return replace(
            request,
            max_length=self.longest_tokens if any_length else request.max_length,
            rows=self.rows,
            mean_tokens=self.mean_tokens,
            longest_tokens=self.longest_tokens,
            labelled=self.labelled,
            micro_step=(self.micro_step_seconds, self.micro_step_tokens),
            residual_bytes=self.measured_bytes - self.predicted_bytes,
            residual_note="two micro-steps just now",
        )


def probe_in_child(recipe: Recipe, say: Callable[[str], None]) -> Probe:
    """Begin `recipe` in a child process and learn what its largest micro batch takes.

    Raises TopcoatError for what the run would be refused for, and where the child comes to no end; Refused where the
    run does not fit.
    """
    say("measuring: the model is loaded in a process of its own, for two micro-steps on the longest rows")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "topcoat.runs.probing_child"],
            input=json.dumps(recipe.model_dump(mode="json")),
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise TopcoatError(
            f"the probe did not end within {show_seconds(LIMIT_SECONDS)}, and was ended",
            "topcoat plan --measure",
            "plan without --measure; topcoat train with the same recipe shows what takes so long",
        ) from error
    if done.returncode == -signal.SIGKILL:
        raise Refused(
            "the probe was ended by the system, as it does when memory runs out",
            "topcoat plan --measure",
            "plan without --measure, and take the smallest change that it names",
        )
    return _read(done)


def _read(done: subprocess.CompletedProcess[str]) -> Probe:
    """What the child found. Raises what it raised, or TopcoatError for a child that died."""
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
