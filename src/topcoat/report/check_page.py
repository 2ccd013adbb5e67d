"""The page of `topcoat data check --html`: the verdict, each finding with its rows and texts, and what the rows are.

It stands alone: no script, no font, no image from elsewhere, and a content policy that forbids them. Rows are shown
with their texts, escaped, except those with secrets or personal data in them: a report is passed on.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from topcoat.data.checks.verdict import Found, Verdict
from topcoat.data.rows import place
from topcoat.report.bars import label_bars, length_bars
from topcoat.units import show_count, show_percent

TEMPLATE = Path(__file__).parent / "check.html.jinja"
ROWS, TEXT = 25, 400  # rows shown of each finding, characters of each text
PRIVATE = ("secrets", "personal_data")
FAMILIES = {
    "quantity": "Is there enough?",
    "diversity": "Is it different enough?",
    "consistency": "Is it of one mould?",
    "quality": "Is each row good?",
    "balance": "Is everything there in due part?",
    "length": "Does it fit?",
    "leaks": "Is what is measured unseen?",
}


def render(verdict: Verdict) -> str:
    """The page as HTML text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    hidden = {at for one in verdict.found if one.check in PRIVATE for at in one.rows}
    for one in verdict.found:
        found[one.family].append(_finding(verdict, one, hidden))
    held = verdict.figures
    return template.render(
        name=_safe(", ".join(Path(file).name for _, file in verdict.corpus.starts) or Path(verdict.corpus.file).name),
        headline=verdict.headline(),
        stops=bool(verdict.stops),
        facts=_facts(verdict),
        families=[{"name": name, "asks": asks, "found": found[name]} for name, asks in FAMILIES.items()],
        lengths=Markup(length_bars(held.lengths, held.max_length, name="rows by length")),
        counted=""
        if held.exact
        else "Tokens are estimated from characters or from a sample; a recipe has them counted.",
        labels=Markup(label_bars(held.labels, name="rows by label")) if held.labels else None,
        clusters=[(", ".join(one.terms), show_percent(one.share), round(100 * one.share, 1)) for one in held.clusters],
        checks=", ".join(verdict.looked_for),
    )


def _facts(verdict: Verdict) -> list[tuple[str, str]]:
    held = verdict.figures
    about = "" if held.exact else "about "
    facts = [
        ("rows", f"{held.rows:,}"),
        ("different rows", f"{held.distinct_rows:,}"),
        ("format", held.form),
        ("tokens", f"{about}{show_count(held.tokens)}"),
        ("in answers", f"{about}{show_count(held.targets)}"),
        ("median row", f"{about}{held.median:,} tokens"),
        ("longest row", f"{about}{held.longest:,} tokens"),
    ]
    if held.max_length is not None:
        facts.append(("max_length", f"{held.max_length:,} tokens"))
    if held.packed_fill is not None:
        facts.append(("positions with a token", show_percent(held.packed_fill)))
    if held.labels:
        facts.append(("labels", f"{len(held.labels):,}"))
    elif held.distinct_triples is not None:
        facts.append(("different word triples", show_percent(held.distinct_triples)))
    return facts


def _finding(verdict: Verdict, one: Found, hidden: set[int]) -> dict[str, Any]:
    rows = []
    for at in one.rows[:ROWS]:
        texts = ("", "") if at in hidden else (verdict.corpus.prompts[at], verdict.corpus.replies[at])
        said = one.finding.details.get(at, "") if at not in hidden or one.check in PRIVATE else ""
        row = {"place": _safe(verdict.corpus.place(at)), "said": _safe(said)}
        rows.append(row | dict(zip(("prompt", "reply"), map(_short, texts), strict=True)))
    for file, line, said in one.finding.elsewhere[: ROWS - len(rows)]:
        rows.append({"place": _safe(place(file, line)), "said": _safe(said), "prompt": "", "reply": ""})
    named = len(one.rows) + len(one.finding.elsewhere)
    return {
        "check": one.check,
        "policy": one.policy,
        "what": _safe(one.finding.what),
        "why": one.finding.why,
        "fix": one.finding.fix,
        "rows": rows,
        "more": f"{named - ROWS:,}" if named > ROWS else "",
    }


def _short(text: str) -> str:
    """The start and, where the end may be the matter, the end."""
    text = _safe(text)
    if len(text) <= TEXT:
        return text
    return f"{text[: TEXT * 3 // 4]} […] {text[-TEXT // 4 :]}"


def _safe(text: str) -> str:
    """Without what HTML cannot hold: control characters and lone surrogates are shown as U+FFFD."""
    return "".join(c if c in "\n\t" or (c >= " " and not "\ud800" <= c <= "\udfff") else "\ufffd" for c in text)
