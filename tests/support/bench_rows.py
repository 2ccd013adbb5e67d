"""Rows of a benchmark with chosen times, for tests of what is computed from them."""

from typing import Any

from bench.results import Row, tokens_per_s

RUN = "2026-01-02T03:04:05+00:00"


def row(
    contender: str,
    seconds: list[float],
    peak: int = 100,
    *,
    workload: str = "135m-alpaca",
    passed: bool = True,
    first_round: int = 1,
) -> Row:
    """A contender whose timed steps of 1,000 tokens took `seconds`, after a slow one of warm-up."""
    steps: list[dict[str, Any]] = [{"round": None, "tokens": 1000, "seconds": 99.0}]
    steps += [{"round": first_round + at, "tokens": 1000, "seconds": s} for at, s in enumerate(seconds)]
    found: Row = {
        "workload": workload,
        "run": RUN,
        "contender": contender,
        "is_ours": contender.startswith("topcoat"),
        "peak_bytes": peak,
        "gate": {"passed": passed, "problems": [] if passed else ["its loss is off"]},
        "steps": steps,
        "flops_per_step": 6e9,
    }
    found["tokens_per_s"] = tokens_per_s(found)
    found["seconds_median"] = 1000 / found["tokens_per_s"]
    return found
