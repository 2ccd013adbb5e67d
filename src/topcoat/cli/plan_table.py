"""A plan for people: what it is for, a stacked bar of memory, the bill, and other ways to run."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from topcoat.planning.bill import Line, group_bytes
from topcoat.planning.estimate import Estimate
from topcoat.planning.search import Candidate
from topcoat.planning.speed import Price
from topcoat.runs.planning import Plan
from topcoat.units import show_bytes, show_count, show_seconds

COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red", "white")
SMALLEST_SHARE = 0.005  # of the budget; a thinner part of the bar is only named


def facts_table(plan: Plan) -> Table:
    """What is planned, on what, and the verdict."""
    made, a = plan.estimate, plan.estimate.request.architecture
    request, speed = made.request, made.speed
    quantized = request.stored.format
    shares = made.counts.trained_numbers
    rows = [
        ("model", f"{a.name}: {a.kind}, {show_count(a.parameters)} parameters, {quantized} weights"),
        ("trains", f"{request.adapter.method}, {shares:,} parameters"),
        ("device", f"{request.device.says}, computes in {request.compute_dtype}"),
        ("micro batch", f"{request.tokens:,} tokens, examples up to {request.max_length:,}"),
        ("recompute", made.recompute),
        ("time", _time(plan)),
        ("speed", f"{_span(*speed.tokens_per_second, '{:,.0f}')} tokens a second"),
    ]
    if plan.price is not None:
        rows.append(("cost", _cost(plan, plan.price)))
    rows.append(("memory", _verdict(made)))
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows:
        style = "" if name != "memory" else "green" if made.fits else "bold red"
        table.add_row(f"[bold]{name}[/]", Text(value, style=style))
    return table


def bar(made: Estimate, width: int) -> RenderableType:
    """The budget as one line of blocks, coloured by group, and the legend below it."""
    whole = max(made.request.budget_bytes, made.peak_bytes)
    sums = group_bytes({line.name: line.bytes for line in made.bill.lines})
    sums["evaluating"] = max(0, made.peak_bytes - made.bill.peak_bytes)
    line, legend = Text(), Text()
    for (group, size), colour in zip(sums.items(), COLOURS, strict=False):
        if size <= 0:
            continue
        if size >= SMALLEST_SHARE * whole:
            line.append("█" * max(1, round(width * size / whole)), style=colour)
        legend.append("█ ", style=colour).append(f"{group} {show_bytes(size)}   ")
    if made.fits:
        line.append("░" * max(0, width - len(line)), style="dim")
        legend.append("░ ", style="dim").append(f"free {show_bytes(made.room_bytes)}")
    return Group(Text(), line, legend, Text())


def bill_table(made: Estimate) -> Table:
    """Every line of a training step, then the phases."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    for line in (*made.bill.lines, Line("training step", made.bill.peak_bytes)):
        style = "bold" if line.name == "training step" else ""
        table.add_row(Text(line.name, style=style), show_bytes(line.bytes), Text(line.note))
    for name, value in made.phases.items():
        if name != "train":
            note = "a command of its own, in float32" if name == "merge" else ""
            table.add_row(Text(f"phase: {name}"), show_bytes(value), Text(note))
    return table


def ways_table(plan: Plan) -> RenderableType:
    """The smallest change that fits, and the fastest plans with what they trade."""
    made, found = plan.estimate, plan.found
    parts: list[RenderableType] = [Text()]
    if not made.fits and found.smallest_change is None:
        over = show_bytes(-found.smallest.estimate.room_bytes)
        parts.append(Text(f"nothing fits: the smallest way takes {over} more than there is", style="bold red"))
        parts.append(Text(f"  smallest: {_typed(found.smallest)}: {_takes(found.smallest)}"))
        larger = found.larger_device
        parts.append(Text(f"  it would fit on {larger.says}" if larger else "  no device that is known has as much"))
    elif found.smallest_change is not None:
        parts.append(Text(f"smallest change that fits: {_typed(found.smallest_change)}", style="bold"))
        parts.append(Text(f"  {_takes(found.smallest_change)}"))
    if found.fastest:
        best = found.fastest[0]
        parts.append(Text("fastest that fit", style="bold"))
        for candidate in found.fastest:
            trade = "" if candidate is best else f"; {candidate.trade(best)}"
            parts.append(Text(f"  {_typed(candidate)}: {_takes(candidate)}{trade}"))
    return Group(*parts)


def _typed(candidate: Candidate) -> str:
    return " ".join(candidate.changes) or "as it is"


def _takes(candidate: Candidate) -> str:
    seconds = _span(*candidate.estimate.speed.step_seconds, "{:.3g}")
    return f"{show_bytes(candidate.estimate.peak_bytes)}, {seconds} s a step"


def _verdict(made: Estimate) -> str:
    peak, budget = show_bytes(made.peak_bytes), show_bytes(made.request.budget_bytes)
    if made.fits:
        return f"fits: {peak} of {budget}, {show_bytes(made.room_bytes)} left"
    phase = max((name for name in made.phases if name != "merge"), key=lambda name: made.phases[name])
    return f"does not fit: {peak} of {budget}, {show_bytes(-made.room_bytes)} too much, to {phase}"


def _time(plan: Plan) -> str:
    speed, steps = plan.estimate.speed, plan.estimate.request.steps
    one = f"{_span(*speed.step_seconds, '{:.3g}')} s a step"
    if speed.run_seconds is None:
        return one
    low, high = (show_seconds(seconds) for seconds in speed.run_seconds)
    return f"{one}, {low} to {high} for {steps:,} steps of training"


def _cost(plan: Plan, price: Price) -> str:
    """Of the run, or of a million tokens where its length is not known; and the energy, where the power is."""
    speed, watts = plan.estimate.speed, plan.estimate.request.device.watts
    low, high = speed.run_seconds or (1e6 / speed.tokens_per_second[1], 1e6 / speed.tokens_per_second[0])
    what = "" if speed.run_seconds else " for a million tokens"
    money = f"{_span(price.of(low, watts), price.of(high, watts), '{:,.2f}')} {price.currency}".strip()
    energy = _span(low * watts / 3.6e6, high * watts / 3.6e6, "{:,.2f}")
    return f"{money}{what}" + (f", {energy} kWh at {watts} W" if watts else "")


def _span(low: float, high: float, form: str) -> str:
    """ "1.2 to 1.5", or one figure where both read the same."""
    first, last = form.format(low), form.format(high)
    return first if first == last else f"{first} to {last}"
