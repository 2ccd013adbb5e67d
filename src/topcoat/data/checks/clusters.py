"""Clusters of instructions: spherical k-means on hashed words, weight (1 + log tf) * min(1.5, log(1 + N / df)).

Each text is a unit vector in 2,048 hashed word buckets; a cluster's centre is the mean of its texts, and a text belongs
to the centre with the largest cosine. Centres that ended up close (a cosine of 0.5) are one cluster: a topic that most
texts share would else be cut into as many as it took starts. Only texts with a cosine of at least 0.3 to their centre
count as its members: the rest are like nothing else. The cap on rare words keeps names from hiding what is the same
around them. At most 4,000 texts are looked at, evenly spread.

Paper: Dhillon and Modha 2001, "Concept decompositions for large sparse text data using clustering".
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BUCKETS, MOST, CLUSTERS, ROUNDS = 2048, 4000, 12, 12
TOGETHER, ONE, HEAVIEST = 0.3, 0.5, 1.5
_WORD = re.compile(r"[^\W\d_]{3,}")
_SMALL = frozenset(
    {"the", "and", "for", "you", "your", "that", "this", "with", "are", "from", "what", "how", "can", "was", "were",
     "will", "has", "have", "not", "its", "into", "about", "which", "when", "would", "there", "their", "they", "them",
     "his", "her", "she", "him", "our", "any", "all", "one", "use", "using"}
)  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """A group of texts that use the same words: its share of all texts looked at, and the words."""

    share: float
    terms: tuple[str, ...]


def cluster(texts: Sequence[str]) -> list[Cluster]:
    """The clusters of `texts`, the largest first."""
    sample = texts[:: max(1, len(texts) // MOST)][:MOST]
    words = [[w for w in _WORD.findall(text[:1000].casefold()) if w not in _SMALL] for text in sample]
    vectors = _vectors(words)
    if not len(vectors) or not vectors.any():
        return []
    member, near = _assign(vectors, min(CLUSTERS, len(sample)))
    found = []
    for number in np.unique(member):
        inside = np.flatnonzero((member == number) & near)
        if len(inside) < 2:
            continue
        counts = Counter(word for at in inside for word in dict.fromkeys(words[at]))
        found.append(Cluster(len(inside) / len(sample), tuple(word for word, _ in counts.most_common(4))))
    return sorted(found, key=lambda one: -one.share)


def _vectors(words: Sequence[Sequence[str]]) -> NDArray[np.float32]:
    """Unit vectors (N, BUCKETS)."""
    table = np.zeros((len(words), BUCKETS), np.float32)
    for at, some in enumerate(words):
        for word, count in Counter(some).items():
            table[at, zlib.crc32(word.encode()) % BUCKETS] += 1 + np.log(count)
    rare = np.minimum(HEAVIEST, np.log(1 + len(words) / np.maximum(1, (table > 0).sum(0))))
    table *= rare.astype(np.float32)
    length = np.linalg.norm(table, axis=1, keepdims=True)
    table /= np.where(length > 0, length, 1)
    return table


def _assign(vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The cluster of each vector (N,), and whether it is near enough to count. Starts at texts spread evenly."""
    centres = vectors[:: max(1, len(vectors) // k)][:k].copy()
    member = np.zeros(len(vectors), np.int64)
    for _ in range(ROUNDS):
        cosines = vectors @ centres.T
        now = cosines.argmax(1)
        if (now == member).all() and member.any():
            break
        member = now
        for number in range(len(centres)):
            mean = vectors[member == number].sum(0)
            length = np.linalg.norm(mean)
            if length > 0:
                centres[number] = mean / length
    close = centres @ centres.T >= ONE
    return close.argmax(1)[member], (vectors @ centres.T).max(1) >= TOGETHER
