"""split: one file into train, validation and test, so that no near-duplicates stand on two sides.

Rows that are near-duplicates of each other, directly or by way of others, by their whole text or by their opening
prompt, form a group, and a group is dealt out as one. Groups are taken within strata (a label's rows, or rows of like
length) in an order drawn from the seed and the group's own text, each to the part that lacks most of its share of the
stratum. The result is a pure function of the rows, the shares and the seed.

The border is J = 0.7, below the 0.8 from which `data check` calls two texts near-duplicates: what is near the line
falls on one side together.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from topcoat.data.checks.corpus import Corpus, corpus_of
from topcoat.data.checks.finding import count
from topcoat.data.checks.reading import reading_of
from topcoat.data.near import Groups, near_pairs
from topcoat.data.progress import Tell, silent, told
from topcoat.data.rows import Row, iter_rows
from topcoat.data.settings import DataSettings
from topcoat.errors import Refused, TopcoatError

NEAR = 0.7
LENGTH_STRATA = 10
By = Literal["label", "length", "nothing"]


@dataclass(frozen=True)
class Part:
    """One side of a split."""

    name: str
    rows: list[Row]
    groups: int


@dataclass(frozen=True)
class Split:
    """The parts, and how they came about."""

    parts: list[Part]
    by: By
    groups: int
    together: list[tuple[str, list[int]]]
    """The groups of more than one row: their part, and the lines of their rows."""
    strata: dict[str, dict[str, int]]
    """Stratum -> rows in each part."""


def split(
    settings: DataSettings,
    shares: Mapping[str, float],
    *,
    objective: str = "sft",
    by: By | None = None,
    seed: int = 42,
    tell: Tell = silent,
) -> Split:
    """The rows of `settings.train` dealt out by `shares` (part -> share, summing to 1), each part in the file's order.

    `by` None is label where the rows are a classification, else length.

    Raises:
        TopcoatError: the file cannot be read, the shares do not sum to 1, or `by` is label and there are none.
        Refused: there are fewer groups than parts, so that a part would stay empty.
    """
    wanted = {name: share for name, share in shares.items() if share > 0}
    if any(share < 0 for share in shares.values()) or abs(sum(wanted.values()) - 1) > 1e-6:
        said = " + ".join(f"{share:g}" for share in shares.values())
        raise TopcoatError(
            f"the shares {said} are {sum(shares.values()):g} together; expected 1",
            "--train",
            "write shares that sum to 1, such as --train 0.8 --validation 0.1 --test 0.1",
        )
    rows = list(told(iter_rows(settings.train), f"reading {Path(settings.train).name}", tell))
    corpus = corpus_of(rows, reading_of(settings, objective, tell), tell)
    strata_of, by = _strata(corpus, by)
    roots = _groups(corpus, tell)
    members: dict[int, list[int]] = defaultdict(list)
    for at, root in enumerate(roots):
        members[root].append(at)
    if len(members) < len(wanted):
        groups = count(len(members), "group", "groups")
        what = f"{count(len(rows), 'row', 'rows')} in {groups} of near-duplicates, for {len(wanted)} parts"
        raise Refused(what, settings.train, "name fewer parts (--test 0), or add rows")
    part_of = _deal(corpus, list(members.values()), strata_of, wanted, seed)
    parts = []
    for name in wanted:
        mine = [at for at in range(len(rows)) if part_of[at] == name]
        parts.append(Part(name, [rows[at] for at in mine], len({roots[at] for at in mine})))
    strata: dict[str, dict[str, int]] = {}
    for at, stratum in enumerate(strata_of):
        in_parts = strata.setdefault(stratum, dict.fromkeys(wanted, 0))
        in_parts[part_of[at]] += 1
    together = [(part_of[root], [rows[at].line for at in some]) for root, some in members.items() if len(some) > 1]
    return Split(parts, by, len(members), together, dict(sorted(strata.items())))


def _strata(corpus: Corpus, by: By | None) -> tuple[list[str], By]:
    """The stratum of each row, and by what."""
    labels = corpus.labels
    if by == "label" and labels is None:
        fix = "leave --by out, or give --by length"
        raise TopcoatError("the rows have no labels: their answers are no small set of short texts", "--by label", fix)
    if by == "label" or (by is None and labels is not None):
        return [reply.strip() for reply in corpus.replies], "label"
    if by == "nothing":
        return ["all"] * len(corpus), "nothing"
    sizes = np.array([len(p) + len(r) for p, r in zip(corpus.prompts, corpus.replies, strict=True)])
    edges = np.unique(np.quantile(sizes, np.linspace(0, 1, LENGTH_STRATA + 1)[1:-1]))
    return [f"length {number:02d}" for number in np.searchsorted(edges, sizes, side="left")], "length"


def _groups(corpus: Corpus, tell: Tell) -> list[int]:
    """The first row of each row's group."""
    groups = Groups(len(corpus))
    has_prompts = any(corpus.openings)
    for texts in (corpus.whole, corpus.questions) if has_prompts else (corpus.whole,):
        first: dict[bytes, int] = {}
        for at, text in enumerate(texts):
            groups.join(first.setdefault(text, at), at)
        distinct, places = list(first), list(first.values())
        inner = Groups(len(distinct))
        for a, b, _ in near_pairs(distinct, NEAR, groups=inner, tell=lambda d, n: tell("near-duplicates", d, n)):
            inner.join(a, b)
            groups.join(places[a], places[b])
    return [int(root) for root in groups.roots()]


def _deal(
    corpus: Corpus, groups: list[list[int]], strata_of: list[str], shares: Mapping[str, float], seed: int
) -> list[str]:
    """The part of each row: groups one after the other, the large ones first, each where most is lacking."""

    def drawn(group: list[int]) -> bytes:
        return hashlib.sha256(b"%d\n" % seed + corpus.whole[group[0]]).digest()

    sizes: dict[str, int] = defaultdict(int)
    for stratum in strata_of:
        sizes[stratum] += 1
    lacks = {stratum: {name: share * size for name, share in shares.items()} for stratum, size in sizes.items()}
    overall = {name: share * len(corpus) for name, share in shares.items()}
    part_of = [""] * len(corpus)
    for group in sorted(groups, key=lambda group: (-len(group) if len(group) > 1 else 0, drawn(group))):
        counts: dict[str, int] = defaultdict(int)
        for at in group:
            counts[strata_of[at]] += 1
        name = max(shares, key=_need(counts, lacks, overall, shares))
        for at in group:
            part_of[at] = name
        for stratum, brought in counts.items():
            lacks[stratum][name] -= brought
        overall[name] -= len(group)
    for name in shares:  # a small share of a small file may have got nothing
        if name not in part_of:
            largest = max(shares, key=part_of.count)
            moved = min((g for g in groups if part_of[g[0]] == largest), key=lambda g: (len(g), drawn(g)))
            for at in moved:
                part_of[at] = name
    return part_of


def _need(
    counts: Mapping[str, int],
    lacks: Mapping[str, Mapping[str, float]],
    overall: Mapping[str, float],
    shares: Mapping[str, float],
) -> Callable[[str], tuple[bool, float]]:
    """Parts with room for the whole group in each of its strata come first, those that lack most of their share; what
    is left of the strata by rounding goes to the part that lacks most of the whole file."""

    def need(name: str) -> tuple[bool, float]:
        room = all(lacks[stratum][name] > count - 1e-6 for stratum, count in counts.items())
        lack = sum(lacks[stratum][name] for stratum in counts) if room else overall[name]
        return room, round(lack / shares[name], 6)

    return need


def manifest(
    result: Split, source: Path, digest: str, files: Mapping[str, tuple[str, str]], seed: int
) -> dict[str, Any]:
    """What was made of what, as JSON: `files` are part -> (file name, SHA-256). No time and no path of this machine:
    the same rows and seed give the same bytes."""
    return {
        "source": {"file": source.name, "sha256": digest, "rows": sum(len(part.rows) for part in result.parts)},
        "seed": seed,
        "by": result.by,
        "near_duplicates": {
            "jaccard": NEAR,
            "groups": result.groups,
            "of_several_rows": [{"part": part, "lines": ranges(lines)} for part, lines in result.together],
        },
        "parts": {
            part.name: {
                "file": files[part.name][0],
                "sha256": files[part.name][1],
                "rows": len(part.rows),
                "groups": part.groups,
                "lines": ranges([row.line for row in part.rows]),
            }
            for part in result.parts
        },
        "strata": result.strata,
    }


def ranges(numbers: list[int]) -> str:
    """Rising numbers in few words: [1, 2, 3, 7] -> "1-3,7"."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][-1] == number - 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ",".join("-".join(map(str, pair)) for pair in found)
