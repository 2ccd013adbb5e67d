"""Figures: what the rows are, in numbers, whether or not anything is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topcoat.data.checks.clusters import Cluster, cluster
from topcoat.data.checks.corpus import PLAIN, Corpus
from topcoat.data.checks.diversity import distinct_triples

CHARACTERS_PER_TOKEN = 4  # English prose under the tokenizers in use; only where no recipe names a tokenizer
BARS = 24


@dataclass(frozen=True)
class Histogram:
    """How many rows have a size from edges[i] to edges[i + 1]; the edges grow by a constant factor."""

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class Figures:
    """Counts of one file. `tokens` and `targets` are counted where `exact`, else estimated from characters."""

    rows: int
    form: str
    exact: bool
    tokens: int
    targets: int
    median: int
    longest: int
    lengths: Histogram
    distinct_rows: int
    distinct_triples: float | None
    labels: dict[str, int] | None
    clusters: list[Cluster] = field(default_factory=list)
    packed_fill: float | None = None
    max_length: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = dict(vars(self))
        plain["lengths"] = vars(self.lengths)
        plain["clusters"] = [{"share": one.share, "terms": list(one.terms)} for one in self.clusters]
        return plain


def figures(corpus: Corpus, *, clusters: bool) -> Figures:
    """The figures of `corpus`; its clusters only where asked for, since they cost a second."""
    held = corpus.setting.lengths
    if held is not None and held.rows:
        sizes = np.array(held.tokens)
        scale = len(corpus) / len(held.rows)
        tokens, targets = round(sizes.sum() * scale), round(sum(held.targets) * scale)
    else:
        said = np.array([len(reply) for reply in corpus.replies])
        sizes = -(-(said + np.array([len(prompt) for prompt in corpus.prompts])) // CHARACTERS_PER_TOKEN)
        tokens, targets = int(sizes.sum()), int((-(-said // CHARACTERS_PER_TOKEN)).sum())
    asked = clusters and corpus.labels is None and corpus.form not in PLAIN
    return Figures(
        rows=len(corpus),
        form=corpus.form,
        exact=held is not None and len(held.rows) == len(corpus),
        tokens=tokens,
        targets=targets,
        median=int(np.median(sizes)),
        longest=int(sizes.max()),
        lengths=_histogram(sizes),
        distinct_rows=len(set(corpus.first)),
        distinct_triples=distinct_triples(corpus),
        labels=corpus.labels,
        clusters=cluster(corpus.openings)[:8] if asked else [],
        packed_fill=corpus.setting.fill,
        max_length=corpus.setting.max_length,
    )


def _histogram(sizes: NDArray[Any]) -> Histogram:
    """Logarithmic bars from the shortest to the longest; equal sizes are one bar."""
    low, high = max(1, int(sizes.min())), max(1, int(sizes.max()))
    if low == high:
        return Histogram([low, high + 1], [len(sizes)])
    edges = np.geomspace(low, high + 1, BARS + 1)
    counts, _ = np.histogram(np.maximum(sizes, 1), edges)
    return Histogram([float(edge) for edge in edges], [int(count) for count in counts])
