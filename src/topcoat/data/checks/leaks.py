"""Leaks: held-out or benchmark prompts that stand in the training rows, word for word, nearly, or by their n-grams.

Nearly is the measure of `near.py` on the opening prompts. A benchmark row also counts as leaked when at least half of
its word 8-grams stand in one training row, prompt or answer: copies keep long runs of words whatever is put around
them (Brown et al. 2020, arXiv:2005.14165, appendix C, with 13-grams; 8-grams as in Touvron et al. 2023,
arXiv:2307.09288, since many questions have fewer than 13 words).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from topcoat.data.checks.corpus import Corpus
from topcoat.data.checks.finding import Finding, count
from topcoat.data.near import near_pairs

NEAR, GRAM, PART, SHORTEST = 0.8, 8, 0.5, 12
_WORD = re.compile(rb"[^\s!-/:-@\[-`{-~]+")
WHY = "a score on rows that were trained on is a memory test"


def validation_leaks(corpus: Corpus) -> list[Finding]:
    if corpus.against is None:
        return []
    first = _first_of_each(corpus)
    hit = {first[text]: at for at, text in enumerate(corpus.against.questions) if text in first}
    n = sum(text in first for text in corpus.against.questions)
    if not n:
        return []
    rows = [at for at, text in enumerate(corpus.questions) if first[text] in hit]
    details = {at: f"same prompt as {corpus.against.place(hit[first[corpus.questions[at]]])}" for at in rows}
    what = f"{n:,} of {len(corpus.against):,} validation rows have a prompt that is trained on"
    return [Finding(what, WHY, "leave these training rows out (--fix does), or split again", rows, details)]


def is_memory_test(corpus: Corpus) -> bool:
    """Whether every validation prompt is a training prompt: no accident, but a test of what was learned by heart."""
    return corpus.against is not None and set(corpus.against.questions) <= set(corpus.questions)


def validation_near(corpus: Corpus) -> list[Finding]:
    if corpus.against is None:
        return []
    found = _near(corpus, corpus.against)
    if not found:
        return []
    details = {at: f"nearly the prompt of {corpus.against.place(other)}" for at, other in found.items()}
    n = len(set(found.values()))
    what = f"{n:,} of {len(corpus.against):,} validation rows have nearly a training prompt"
    return [
        Finding(
            what, WHY, "leave these training rows out, or split again with `topcoat data split`", sorted(found), details
        )
    ]


def benchmark_leaks(corpus: Corpus) -> list[Finding]:
    """Rows of the benchmarks in the training rows; and in the validation rows, unless they are the benchmark itself."""
    found = []
    held = corpus.against
    for benchmark in corpus.benchmarks:
        if details := _copied(corpus, benchmark):
            what = f"{_how_many(details, benchmark)} stand in the training rows"
            said = {at: place for at, (_, place) in details.items()}
            found.append(Finding(what, WHY, "leave these training rows out (--fix does)", list(said), said))
        if held is None or Path(held.file).resolve() == Path(benchmark.file).resolve():
            continue
        if details := _copied(held, benchmark):
            what = f"{_how_many(details, benchmark)} stand in the validation rows"
            why = "what is chosen by its validation score is chosen for the benchmark too: its score there is too good"
            places = [(held.file_of(at), held.lines[at], place) for at, (_, place) in details.items()]
            fix = "leave these validation rows out, or do not choose by their score"
            found.append(Finding(what, why, fix, elsewhere=places, count=len(places)))
    return found


def _copied(corpus: Corpus, benchmark: Corpus) -> dict[int, tuple[int, str]]:
    """Row -> (the benchmark's row that stands in it, that in words), in the order of the rows."""
    first = _first_of_each(corpus)
    exact = {first[text]: at for at, text in enumerate(benchmark.questions) if text in first and len(text) >= SHORTEST}
    pairs = {at: (other, "nearly") for at, other in _near(corpus, benchmark).items()}
    pairs |= {at: (other, "8-grams of") for at, other in _by_ngrams(corpus, benchmark).items()}
    same = {at: exact[first[text]] for at, text in enumerate(corpus.questions) if first[text] in exact}
    pairs |= {at: (other, "the same as") for at, other in same.items()}
    return {at: (other, f"{how} {benchmark.place(other)}") for at, (other, how) in sorted(pairs.items())}


def _how_many(copied: dict[int, tuple[int, str]], benchmark: Corpus) -> str:
    n = len({other for other, _ in copied.values()})
    return f"{n:,} of {len(benchmark):,} rows of {Path(benchmark.file).name}"


def unseen_labels(corpus: Corpus) -> list[Finding]:
    if corpus.against is None or corpus.labels is None or corpus.against.labels is None:
        return []
    held, table = corpus.against, corpus.reading.table
    unseen = [label for label, n in corpus.against.labels.items() if n and not corpus.labels.get(label)]
    if not unseen:
        return []
    said = [reply if table is not None else reply.strip() for reply in held.replies]
    places = [(held.file_of(at), held.lines[at], repr(label)) for at, label in enumerate(said) if label in set(unseen)]
    several = "labels of the validation rows are" if len(unseen) > 1 else "label of the validation rows is"
    what = f"{len(unseen):,} {several} in no training row: {', '.join(map(repr, unseen[:5]))}"
    why = f"{count(len(places), 'validation row', 'validation rows')} cannot be answered"
    stops = table is not None and not set(unseen) <= set(table)  # the run's head has no output for them
    why += ", and the run stops at them" if stops else ""
    fix = "add training rows with these labels, or mend their spelling"
    return [Finding(what, why, fix, elsewhere=places, count=len(places), stops=stops)]


def _first_of_each(corpus: Corpus) -> dict[bytes, int]:
    """Each distinct opening -> its first row; openings without a letter or digit ask nothing."""
    first: dict[bytes, int] = {}
    for at, text in enumerate(corpus.questions):
        first.setdefault(text, at)
    return first


def _near(corpus: Corpus, other: Corpus) -> dict[int, int]:
    """Training row -> a row of `other` with nearly its opening; equal ones are another matter."""
    mine, theirs = list(_first_of_each(corpus).items()), list(_first_of_each(other).items())
    texts = [text for text, _ in mine] + [text for text, _ in theirs]
    found: dict[bytes, int] = {}
    for a, b, _ in near_pairs(texts, NEAR, border=len(mine), tell=lambda done, n: corpus.tell("leaks", done, n)):
        if texts[a] != texts[b]:
            found.setdefault(texts[a], theirs[b - len(mine)][1])
    return {at: found[text] for at, text in enumerate(corpus.questions) if text in found}


def _by_ngrams(corpus: Corpus, benchmark: Corpus) -> dict[int, int]:
    """Training row -> a benchmark row half of whose 8-grams stand in it."""
    ids: dict[bytes, int] = {}
    grams = [_grams(text, ids, grow=True) for text in benchmark.questions]
    owners: dict[int, list[int]] = {}
    for at, some in enumerate(grams):
        for gram in some.tolist():
            owners.setdefault(gram, []).append(at)
    if not owners:
        return {}
    known = np.sort(np.fromiter(owners, np.int64))
    found: dict[int, int] = {}
    for at, text in enumerate(corpus.whole):
        if at % 2000 == 0:
            corpus.tell("benchmark n-grams", at, len(corpus))
        mine = _grams(text, ids, grow=False)
        places = np.searchsorted(known, mine)
        hits = mine[known[np.minimum(places, len(known) - 1)] == mine]
        counts: dict[int, int] = {}
        for gram in hits.tolist():
            for owner in owners[gram]:
                counts[owner] = counts.get(owner, 0) + 1
        best = max(counts, key=lambda owner: counts[owner] / len(grams[owner]), default=None)
        if best is not None and counts[best] >= PART * len(grams[best]):
            found[at] = best
    return found


def _grams(text: bytes, ids: dict[bytes, int], grow: bool) -> NDArray[np.int64]:
    """Distinct hashes of the word 8-grams of a text; words that no benchmark has are all one."""
    words = _WORD.findall(text)
    if len(words) < GRAM:
        return np.zeros(0, np.int64)
    numbers = np.array([ids.setdefault(w, len(ids) + 1) if grow else ids.get(w, 0) for w in words], np.int64)
    hashed = np.zeros(len(numbers) - GRAM + 1, np.int64)
    clean = np.ones(len(hashed), bool)
    for step in range(GRAM):
        part = numbers[step : step + len(hashed)]
        clean &= part > 0
        with np.errstate(over="ignore"):
            hashed = hashed * np.int64(6364136223846793005) + part + np.int64(1442695040888963407)
    return np.unique(hashed[clean])
