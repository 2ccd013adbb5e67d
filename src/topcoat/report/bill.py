"""The memory bill of a run for its page: every line, the stacked picture, and predicted beside measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from topcoat.planning.bill import group_bytes
from topcoat.report.bars import stacked_bars
from topcoat.units import show_bytes, show_seconds

Json = dict[str, Any]


def bill(plan: Mapping[str, Any]) -> Json | None:
    """The lines of plan.json with their share of the largest, the picture and its groups, and the totals; or None."""
    if not plan.get("lines"):
        return None
    largest = max((line["bytes"] for line in plan["lines"]), default=0) or 1
    lines = [
        {
            "name": line["name"],
            "note": line.get("note") or "",
            "bytes": show_bytes(line["bytes"]),
            "percent": round(max(0.0, 100 * line["bytes"] / largest), 1),
        }
        for line in plan["lines"]
    ]
    groups = group_bytes({line["name"]: line["bytes"] for line in plan["lines"]})
    measured = plan.get("measured_peak_bytes")
    picture = Markup(stacked_bars({"predicted": groups}, measured, name="memory by what holds it"))
    parts = [(name, show_bytes(size)) for name, size in groups.items()]
    return {"lines": lines, "totals": [*_memory(plan), *_time(plan)], "picture": picture, "groups": parts}


def _memory(plan: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    totals = []
    peak, measured = plan.get("peak_bytes"), plan.get("measured_peak_bytes")
    if peak is not None:
        totals.append(("predicted peak", show_bytes(peak), ""))
    if measured is not None:
        off = f"{100 * (measured - peak) / peak:+.1f} % against the prediction" if peak else ""
        totals.append(("measured peak", show_bytes(measured), off))
    return totals


def _time(plan: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Seconds of a step: the roofline's bounds, and the median of the run."""
    totals = []
    bounds, measured = plan.get("step_seconds"), plan.get("measured_step_seconds")
    if bounds:
        totals.append(("predicted step", f"{bounds[0]:.3g} to {bounds[1]:.3g} s", "the device's roofline"))
    if measured:
        totals.append(("measured step", f"{measured:.3g} s", "the median"))
    if plan.get("measured_train_seconds"):
        bounds = plan.get("run_seconds")
        said = f"predicted {show_seconds(bounds[0])} to {show_seconds(bounds[1])}" if bounds else ""
        totals.append(("time of all steps", show_seconds(plan["measured_train_seconds"]), said))
    return totals
