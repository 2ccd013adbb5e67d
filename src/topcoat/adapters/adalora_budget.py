"""AdaLoRA's budget: how many ranks all linears have together at each step, falling along a cubic.

    b(t) = b0                                                       t <= ti
    b(t) = floor(bT + (b0 - bT) (1 - (t - ti) / (T - tf - ti))^3)    between
    b(t) = bT                                                       t >= T - tf

b0 and bT are init_r and target_r times the number of linears, t counts optimizer steps done, T are all of the run's.
The paper prints the numerator as t - ti - tf, which would exceed b0 at first; its code, PEFT and this file have t - ti.
No torch here. Paper: Zhang et al. 2023, arXiv:2303.10512, equation 12.
"""

from __future__ import annotations

from dataclasses import dataclass

from topcoat.adapters.settings import AdaloraConfig
from topcoat.errors import TopcoatError

INITIAL_SHARE, FINAL_SHARE = 0.1, 0.4  # of a run's steps, where the recipe leaves tinit and tfinal open


@dataclass(frozen=True)
class Budget:
    """b(t) of one run."""

    first: int
    """b0."""
    last: int
    """bT."""
    tinit: int
    tfinal: int
    total: int

    def at(self, step: int) -> int:
        """Ranks that all linears have together once `step` optimizer steps are done."""
        if step <= self.tinit:
            return self.first
        if step >= self.settled:
            return self.last
        left = 1 - (step - self.tinit) / (self.settled - self.tinit)
        return int((self.first - self.last) * left**3 + self.last)

    @property
    def settled(self) -> int:
        """The step from which on ranks stay as they are."""
        return self.total - self.tfinal


def resolved(config: AdaloraConfig, total: int) -> AdaloraConfig:
    """`config` with the run's own number of steps, and the two spans that it leaves open.

    Raises TopcoatError where no step is left in which ranks could go.
    """
    if config.total_step is not None and config.total_step != total:
        raise TopcoatError(
            f"adapter.total_step is {config.total_step}, and this run has {total} steps",
            where="adapter.total_step",
            fix="leave it out: a run knows its own steps; train.max_steps and train.epochs set them",
        )
    tinit = int(INITIAL_SHARE * total) if config.tinit is None else config.tinit
    tfinal = int(FINAL_SHARE * total) if config.tfinal is None else config.tfinal
    if tinit + tfinal >= total:
        raise TopcoatError(
            f"AdaLoRA takes ranks away between the first {tinit} and the last {tfinal} steps of a run, and this one "
            f"has {total}: no step is left in which it could",
            where="adapter.tinit",
            fix="lower adapter.tinit or adapter.tfinal, leave them out (a tenth and two fifths of the run), or train "
            "for more steps",
        )
    return config.model_copy(update={"tinit": tinit, "tfinal": tfinal, "total_step": total})


def budget_of(config: AdaloraConfig, linears: int) -> Budget:
    """The budget of a `resolved` config over so many linears."""
    assert config.tinit is not None
    assert config.tfinal is not None
    assert config.total_step is not None
    return Budget(config.init_r * linears, config.target_r * linears, config.tinit, config.tfinal, config.total_step)
