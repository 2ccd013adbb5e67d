"""Refused: rows that a run would not train, in the words it would say them in. Needs a recipe, for its tokenizer.

What a template leaves out, moves or rewrites is found where rows become tokens (`data/proof.py`), and what a whole file
lacks where it is loaded (`data/load.py`); here it is told before a run is started.
"""

from __future__ import annotations

from collections.abc import Sequence

from topcoat.data.checks.corpus import Corpus
from topcoat.data.checks.finding import Finding, count
from topcoat.errors import Problem

WHY = "a run ends there, before its first step"


def refused_rows(corpus: Corpus) -> list[Finding]:
    """One finding for all rows that one and the same thing would help."""
    lengths, setting = corpus.setting.lengths, corpus.setting
    if lengths is None:
        return []
    seen = f" of {lengths.counted:,} counted" if lengths.counted < len(corpus) else ""
    found = []
    for fix, rows in _by_fix(lengths.refused).items():
        what = f"{count(len(rows), 'row', 'rows')}{seen} refused by `topcoat train`"
        found.append(Finding(what, WHY, fix, list(rows), rows, stops=True))
    for fix, beside in _by_fix(setting.validation_refused).items():
        held = corpus.against
        assert held is not None  # whose rows they are
        places = [(held.file_of(at), held.lines[at], said) for at, said in beside.items()]
        what = f"{count(len(beside), 'validation row', 'validation rows')} refused by `topcoat train`"
        found.append(Finding(what, WHY, fix, elsewhere=places, count=len(places), stops=True))
    return found + ([_of_the_whole(corpus, setting.problems)] if setting.problems else [])


def _by_fix(refused: dict[int, tuple[str, str]]) -> dict[str, dict[int, str]]:
    """What would help -> what is wrong, by row."""
    found: dict[str, dict[int, str]] = {}
    for at, (what, fix) in refused.items():
        found.setdefault(fix, {})[at] = what
    return found


def _of_the_whole(corpus: Corpus, problems: Sequence[Problem]) -> Finding:
    """What a run says of the rows together, or of some that were not counted."""
    places = {corpus.place(at): at for at in range(len(corpus))}
    said = [problem.what.partition(": ") for problem in problems]
    rows = {places[where]: what for where, _, what in said if where in places}
    others = ", and others" if len(problems) > 1 else ""
    what = f"`topcoat train` refuses the data: {problems[0].what}{others}"
    return Finding(what, WHY, problems[0].fix or "mend the data", sorted(rows), rows, stops=True)
