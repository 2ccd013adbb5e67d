"""check: every check of the table run over a corpus, and the Verdict: what was found, and whether it stops a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.text import Text

from topcoat.data.checks.corpus import PLAIN, Corpus
from topcoat.data.checks.figures import Figures, figures
from topcoat.data.checks.finding import Family, Finding, count
from topcoat.data.checks.settings import DataChecks, Policy
from topcoat.data.checks.table import CHECKS
from topcoat.data.lines import escaped
from topcoat.data.rows import place
from topcoat.units import show_count

SHOWN = 3  # rows named for each finding in the terminal
KEPT = 1000  # rows kept in the dict; --rows writes all
COLOURS: dict[str, str] = {"stop": "bold red", "warn": "yellow"}


@dataclass(frozen=True)
class Found:
    """A finding, by which check, and what is done about it."""

    check: str
    family: Family
    policy: Policy
    finding: Finding

    @property
    def rows(self) -> list[int]:
        return self.finding.rows

    def places(self, corpus: Corpus) -> Iterator[tuple[str, int, str]]:
        """(file, line, what it is) of every row that is named, those of other files behind those of `corpus`."""
        for at in self.rows:
            yield corpus.file_of(at), corpus.lines[at], self.finding.details.get(at, "")
        yield from self.finding.elsewhere


@dataclass(frozen=True)
class Verdict:
    """All that was found in one file, those that stop first."""

    corpus: Corpus
    figures: Figures
    found: list[Found]
    looked_for: list[str]
    """The checks that ran."""

    @property
    def stops(self) -> list[Found]:
        """The findings that the policy stops on."""
        return [one for one in self.found if one.policy == "stop"]

    @property
    def exit_code(self) -> int:
        """0 fine, 1 findings that the policy stops on."""
        return 1 if self.stops else 0

    def headline(self) -> str:
        """The verdict in one line."""
        n, stops = len(self.found), len(self.stops)
        if not n:
            return f"nothing found by {len(self.looked_for)} checks"
        findings = f"{n} finding{'s' * (n > 1)}"
        return (
            f"{findings}, {stops} of which stop{'s' * (stops == 1)} a run" if stops else f"{findings}, none stops a run"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "files": [file for _, file in self.corpus.starts],
            "ok": not self.stops,
            "headline": self.headline(),
            "notes": self.corpus.notes,
            "figures": self.figures.to_dict(),
            "checks": self.looked_for,
            "findings": [self._plain(one) for one in self.found],
        }

    def _plain(self, one: Found) -> dict[str, Any]:
        finding = one.finding
        number = len(finding.rows) if finding.count is None else finding.count
        places = islice(one.places(self.corpus), KEPT)
        rows = [{"file": file, "line": line, "said": said} for file, line, said in places]
        said = {"what": finding.what, "why": finding.why, "fix": finding.fix, "count": number, "rows": rows}
        return {"check": one.check, "family": one.family, "policy": one.policy, **said}

    def row_list(self) -> Iterable[dict[str, Any]]:
        """Every row of every finding: check, policy, file, line, and what it is."""
        for one in self.found:
            for file, line, said in one.places(self.corpus):
                found = {"file": file, "line": line, "said": said or one.finding.what}
                yield {"check": one.check, "policy": one.policy, **found}

    def __rich__(self) -> RenderableType:
        lines = [Text(f"{', '.join(escaped(file) for _, file in self.corpus.starts)}: {self._size()}")]
        lines += [Text(f"note: {note}") for note in self.corpus.notes]
        for one in self.found:
            lines += ["", *self._said(one)]  # type: ignore[list-item]
        lines += [Text(), Text(self.headline(), style="bold red" if self.stops else "bold green")]
        return Group(*lines)

    def _size(self) -> str:
        held = self.figures
        about = "" if held.exact else "about "
        parts = [count(held.rows, "row", "rows"), held.form, f"{about}{show_count(held.tokens)} tokens"]
        if held.form not in PLAIN:
            parts[-1] += f", {show_count(held.targets)} of them in answers"
        if held.labels:
            parts.append(f"{len(held.labels):,} labels")
        return ", ".join(parts)

    def _said(self, one: Found) -> list[Text]:
        finding = one.finding
        head = Text()
        head.append(f"{one.policy:<5}", style=COLOURS[one.policy])
        head.append(f"{one.check}: ", style="bold")
        head.append(finding.what)
        lines = [head, Text(f"     why   {finding.why}", style="dim"), Text(f"     fix   {finding.fix}")]
        shown = []
        for file, line, said in islice(one.places(self.corpus), SHOWN):
            shown.append(f"{escaped(Path(file).name)}:{line}" + (f" ({said})" if said else ""))
        if shown:
            more = len(finding.rows) + len(finding.elsewhere) - SHOWN
            lines.append(Text(f"     rows  {', '.join(shown)}" + (f" and {more:,} more" if more > 0 else "")))
        return lines


def check(corpus: Corpus, policies: DataChecks, *, cheap_only: bool = False) -> Verdict:
    """Run the checks that `policies` do not turn off, or those of them that cost little."""
    wanted = [
        name for name, one in CHECKS.items() if getattr(policies, name) != "off" and (one.cheap or not cheap_only)
    ]
    found: list[Found] = []
    for done, name in enumerate(wanted):
        corpus.tell(f"checking {name}", done, len(wanted))
        entry = CHECKS[name]
        for finding in entry.find(corpus):
            found.append(Found(name, entry.family, "stop" if finding.stops else _policy(policies, name), finding))
    found.sort(key=lambda one: one.policy != "stop")
    corpus.tell("checked", len(wanted), len(wanted))
    return Verdict(corpus, figures(corpus, clusters=not cheap_only), found, wanted)


def _policy(policies: DataChecks, name: str) -> Policy:
    stated: Policy | Literal["auto"] = getattr(policies, name)
    return "stop" if stated == "auto" else stated


def summary(verdict: Verdict) -> list[str]:
    """One line for each finding, for a run that only warns."""
    said = []
    for one in verdict.found:
        named = next(one.places(verdict.corpus), None)
        first = f" (first: {place(named[0], named[1])})" if named else ""
        said.append(f"{one.check}: {one.finding.what}{first}; {one.finding.why}")
    return said
