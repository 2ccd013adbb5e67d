"""From measured steps to rows and ratios, and the file they are kept in. No torch, no processes: arithmetic.

Tokens a second are the median over the rounds in which contenders take turns (from round 1 on), or over the sweep's
timed steps (rounds 0, -1, ...) where a contender took no turns. A speed ratio is the median, over the rounds that two
contenders took side by side, of the ratio within the round, so that what slows the machine for a while slows both;
where they share no round it is the ratio of the medians. A peer that was faster in the sweep, where it stands alone,
than in its turns counts as it was in the sweep: some slow down when they wait between steps. Contenders that a gate has
stopped are listed and compared with nothing.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.workloads import SUITES, Workload

Row = dict[str, Any]
QLORA = ("135m-alpaca-nf4", "135m-alpaca")
"""The workloads that differ in nothing but how the weights are stored."""


def timed(row: Mapping[str, Any]) -> dict[int, float]:
    """Round -> tokens a second, warm-up left out; the sweep's, which are no turns, only where there are no others."""
    found = {s["round"]: s["tokens"] / s["seconds"] for s in row["steps"] if s["round"] is not None}
    return {round_: speed for round_, speed in found.items() if round_ > 0} or found


def tokens_per_s(row: Mapping[str, Any]) -> float:
    """The median over the timed steps; of a peer the better of its turns and of what it did alone."""
    turns = statistics.median(timed(row).values())
    alone = [s["tokens"] / s["seconds"] for s in row["steps"] if s["round"] is not None and s["round"] <= 0]
    return turns if row.get("is_ours") or not alone else max(turns, statistics.median(alone))


def speed_ratio(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """How many times `theirs` tokens a second `ours` has: the median over common rounds."""
    mine, other = timed(ours), timed(theirs)
    common = sorted(mine.keys() & other.keys())
    if common:
        slowed = statistics.median(other.values()) / tokens_per_s(theirs)
        return slowed * statistics.median(mine[at] / other[at] for at in common)
    return tokens_per_s(ours) / tokens_per_s(theirs)


def counts(row: Mapping[str, Any]) -> bool:
    """True where the row was measured and no gate stopped it."""
    return not row.get("failed") and row["gate"]["passed"]


def compare(rows: list[Row], workload: Workload) -> None:
    """Write into our rows of `workload` how they stand to each peer, and to the best of those to be compared with."""
    own = [row for row in rows if row["workload"] == workload.name and counts(row)]
    peers = [row for row in own if not row["is_ours"]]
    allowed = [row for row in peers if not workload.against or row["contender"] in workload.against]
    best = max(allowed, key=tokens_per_s, default=None)
    for row in own:
        if row["is_ours"]:
            row["versus"] = {
                peer["contender"]: {
                    "speed_ratio": speed_ratio(row, peer),
                    "memory_ratio": row["peak_bytes"] / peer["peak_bytes"],
                }
                for peer in peers
            }
            row["best_peer"] = best["contender"] if best else None
            row |= row["versus"][best["contender"]] if best else {"speed_ratio": None, "memory_ratio": None}


def add_shares(rows: list[Row], runs: Mapping[str, Any]) -> None:
    """The share of the ceiling that each row reached: the higher calibration of its own run, which flatters nobody."""
    for row in rows:
        ceiling = runs[row["run"]]["ceiling"]
        if not row.get("failed"):
            speed = row["flops_per_step"] / row["seconds_median"]
            row["share_of_ceiling"] = speed / 1e9 / max(ceiling.values())


def qlora_over_lora(rows: list[Row]) -> dict[str, float]:
    """Contender -> tokens a second of QLoRA as a share of LoRA's on the same rows, for ours."""
    found: dict[tuple[str, str], float] = {
        (row["workload"], row["contender"]): row["tokens_per_s"] for row in rows if counts(row) and row["is_ours"]
    }
    nf4, dense = QLORA
    return {name: found[w, name] / found[dense, name] for w, name in found if w == nf4 and (dense, name) in found}


def finish(results: dict[str, Any]) -> dict[str, Any]:
    """Everything that follows from the rows, computed again; rows of an older run count as much as new ones.

    `runs` has the environment and the ceiling of every run that still has a row; those of the newest stand on top too.
    """
    rows: list[Row] = results["rows"]
    present = {row["run"] for row in rows}
    results["runs"] = {when: facts for when, facts in sorted(results["runs"].items()) if when in present}
    for facts in results["runs"].values():  # the newest is the last
        results |= facts
    for row in rows:
        if not row.get("failed"):
            before, row["tokens_per_s"] = row["tokens_per_s"], tokens_per_s(row)
            row["seconds_median"] *= before / row["tokens_per_s"]
    add_shares(rows, results["runs"])
    for workload in SUITES[results["suite"]].values():
        compare(rows, workload)
    results["qlora_over_lora"] = qlora_over_lora(rows)
    return results


def merge(results: dict[str, Any], row: Row) -> None:
    """Put `row` in the place of an older one of the same workload and contender."""
    same = (row["workload"], row["contender"])
    results["rows"] = [old for old in results["rows"] if (old["workload"], old["contender"]) != same] + [row]


def read(path: Path, suite: str) -> dict[str, Any]:
    """The results so far, or none."""
    if not path.exists():
        return {"suite": suite, "runs": {}, "rows": []}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write(path: Path, results: dict[str, Any]) -> None:
    """The whole file at once: an interrupted write leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(finish(results), indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)
