"""Near-duplicates: pairs of texts whose shingles overlap, J = |A and B| / |A or B| >= threshold, without n^2 work.

A text's shingles are its 5-byte windows after Unicode NFKC, case folding and collapsing of white space; shingles that
more than half of the texts share (a common instruction) tell nothing and are left out. One pass hashes each shingle
into one of 128 bins and keeps each bin's least (one permutation hashing); empty bins borrow from full ones (optimal
densification). Two signatures agree in a bin with probability J, so texts that agree in all 4 bins of some of the 32
bands are candidates (missed with probability (1 - J^4)^32: 6e-8 at J = 0.8), and each candidate is then held to the
exact J. What is reported is therefore never an estimate; what is missed is bounded.

Papers: Broder 1997 (shingles); Li et al. 2012, arXiv:1208.1259 (one permutation); Shrivastava 2017, arXiv:1703.04664
(densification). Weighed against datasketch and rensa in docs/decisions/0008.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint64]
WIDTH = 5  # bytes of a shingle; packed into one 64-bit code, so that two shingles never collide
BINS, BANDS = 128, 32
BLOCK_BYTES = 2**21  # text hashed at once: its temporaries take some 50 MB
NEIGHBOURS = 8  # texts of one bucket compared with each; unions of the earlier ones reach the rest
COMMON = 0.5  # share of the texts from which on a shingle tells nothing
COMMON_FROM = 20  # texts; below it "most texts" means nothing
COMMON_BITS = 20
SAMPLE = 4096
_NO_COMMON: NDArray[np.bool_] = np.zeros(0, bool)


def normal(text: str) -> bytes:
    """`text` as it is compared: NFKC, case folded, white space collapsed, outer punctuation gone; UTF-8."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    text = " ".join(text.casefold().replace("\0", " ").split())
    start = next((at for at, c in enumerate(text) if c.isalnum()), 0)  # a regex would look ahead from every mark
    end = next((at for at in range(len(text) - 1, start - 1, -1) if text[at].isalnum()), len(text) - 1)
    return text[start : end + 1].encode("utf-8", "surrogatepass")


def shingles(text: bytes) -> Codes:
    """The distinct shingle codes of one normal text, sorted: the windows that begin at each of its bytes."""
    flat = np.frombuffer(text + b"\0" * WIDTH, np.uint8).astype(np.uint64)
    return np.unique(_windows(flat)[: max(1, len(text))])


def _windows(flat: Codes) -> Codes:
    """Bytes (N,) -> codes (N - WIDTH + 1,)."""
    n = len(flat) - WIDTH + 1
    codes = flat[:n].copy()
    for step in range(1, WIDTH):
        codes |= flat[step : step + n] << np.uint64(8 * step)
    return codes


def _mix(codes: Codes) -> Codes:
    """A 64-bit permutation that looks random (splitmix64), in place."""
    with np.errstate(over="ignore"):
        codes += np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            codes ^= codes >> np.uint64(shift)
            codes *= np.uint64(factor)
        codes ^= codes >> np.uint64(31)
    return codes


def _blocks(texts: Sequence[bytes]) -> Iterator[tuple[int, int, Codes, NDArray[np.int64]]]:
    """(first text, its end, mixed codes, the text of each code counted from the first), some 2 MB of text at a time."""
    first = 0
    while first < len(texts):
        end, size = first, 0
        while end < len(texts) and (end == first or size + len(texts[end]) <= BLOCK_BYTES):
            size += len(texts[end]) + WIDTH
            end += 1
        gap = b"\0" * WIDTH
        flat = np.frombuffer(gap.join(text or b"\0" for text in texts[first:end]) + gap, np.uint8).astype(np.uint64)
        lengths = np.array([max(1, len(text)) for text in texts[first:end]])
        starts = np.cumsum(lengths + WIDTH) - lengths - WIDTH
        owner = np.repeat(np.arange(end - first), lengths)
        at = np.arange(len(owner)) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        yield first, end, _mix(_windows(flat)[at]), owner
        first = end


def common_shingles(texts: Sequence[bytes]) -> NDArray[np.bool_]:
    """Hash buckets (2^20,) of the shingles that more than half of the texts share; empty for fewer than 20 texts."""
    if len(texts) < COMMON_FROM:
        return _NO_COMMON
    sample = texts[:: max(1, len(texts) // SAMPLE)]
    counts = np.zeros(2**COMMON_BITS, np.int32)
    for _, _, mixed, owner in _blocks(sample):
        bucket = (mixed >> np.uint64(64 - COMMON_BITS)).astype(np.int64)
        counts += np.bincount(
            np.unique(owner << COMMON_BITS | bucket) & (2**COMMON_BITS - 1), minlength=2**COMMON_BITS
        ).astype(np.int32)
    return counts > COMMON * len(sample)


def signatures(texts: Sequence[bytes], common: NDArray[np.bool_] = _NO_COMMON) -> NDArray[np.uint32]:
    """MinHash signatures (N, BINS) of normal texts. A text of common shingles only keeps them all."""
    found = np.full((len(texts), BINS), 0xFFFFFFFF, np.uint32)
    for first, end, mixed, owner in _blocks(texts):
        if len(common):
            rare = ~common[(mixed >> np.uint64(64 - COMMON_BITS)).astype(np.int64)]
            rare |= ~(np.bincount(owner[rare], minlength=end - first) > 0)[owner]
            mixed, owner = mixed[rare], owner[rare]
        again = _mix(mixed.copy())  # bins and values must not follow from the bits that marked a shingle as common
        cell = owner * BINS + (again >> np.uint64(57)).astype(np.int64)
        values = np.minimum(again & np.uint64(0xFFFFFFFF), 0xFFFFFFFE).astype(np.uint32)
        table = found[first:end].reshape(-1)
        np.minimum.at(table, cell, values)
        found[first:end] = _densify(table.reshape(end - first, BINS))
    return found


@lru_cache(maxsize=1)
def _probes() -> NDArray[np.int64]:
    """Which bins an empty bin asks, in order: (BINS rounds, BINS), a fixed permutation for each bin."""
    random = np.random.Generator(np.random.PCG64(1703_04664))
    return np.stack([random.permutation(BINS) for _ in range(BINS)], axis=1)


def _densify(table: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Each empty bin of (n, BINS) takes the value of the first full bin it asks."""
    empty = table == 0xFFFFFFFF
    filled = table.copy()
    rows, bins = np.nonzero(empty)
    for probe in _probes():
        if not len(rows):
            break
        asked = probe[bins]
        hit = ~empty[rows, asked]
        filled[rows[hit], bins[hit]] = table[rows[hit], asked[hit]]
        rows, bins = rows[~hit], bins[~hit]
    return filled


class Groups:
    """Union-find over n texts."""

    def __init__(self, n: int) -> None:
        self.parent = list(range(n))

    def root(self, at: int) -> int:
        while self.parent[at] != at:
            self.parent[at] = self.parent[self.parent[at]]
            at = self.parent[at]
        return at

    def join(self, a: int, b: int) -> None:
        """The lower root stays, so that a group is named by its first text."""
        a, b = self.root(a), self.root(b)
        self.parent[max(a, b)] = min(a, b)

    def roots(self) -> NDArray[np.int64]:
        """The first text of each text's group, (N,)."""
        return np.array([self.root(at) for at in range(len(self.parent))], np.int64)


class Overlap:
    """The exact J of two of the texts, common shingles left out."""

    def __init__(self, texts: Sequence[bytes], common: NDArray[np.bool_]) -> None:
        self.texts, self.common = texts, common
        self.codes = lru_cache(maxsize=20_000)(self._codes)

    def _codes(self, at: int) -> Codes:
        codes = shingles(self.texts[at])
        if not len(self.common):
            return codes
        rare = ~self.common[(_mix(codes.copy()) >> np.uint64(64 - COMMON_BITS)).astype(np.int64)]
        return codes[rare] if rare.any() else codes

    def __call__(self, a: int, b: int) -> float:
        first, second = self.codes(a), self.codes(b)
        together = np.concatenate([first, second])
        together.sort()
        both = int(np.count_nonzero(together[1:] == together[:-1]))
        return both / (len(first) + len(second) - both)


def near_pairs(
    texts: Sequence[bytes],
    threshold: float,
    *,
    border: int | None = None,
    groups: Groups | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[int, int, float]]:
    """Pairs (a, b, J) with a < b and J >= threshold, each once. Pairs that `groups` has joined already are passed over:
    the caller joins what it takes. With `border`, only pairs of a text before it with one from it on are looked for.
    """
    n = len(texts)
    common = common_shingles(texts[:border])
    table, overlap = signatures(texts, common), Overlap(texts, common)
    seen: set[int] = set()
    slack = 3 * (threshold * (1 - threshold) / BINS) ** 0.5  # three standard deviations of the estimate
    for band in range(BANDS):
        tell(band, BANDS)
        rows = np.ascontiguousarray(table[:, band * 4 : band * 4 + 4])
        keys = _mix(rows.view(np.uint64)[:, 0].copy()) ^ rows.view(np.uint64)[:, 1]
        order = np.argsort(keys, kind="stable")
        same = keys[order]
        for step in range(1, NEIGHBOURS + 1):
            at = np.flatnonzero(same[step:] == same[:-step])
            if not len(at):
                break
            a, b = np.sort(np.stack([order[at], order[at + step]]), axis=0)
            keep = (a < border) & (b >= border) if border is not None else a != b
            if groups is not None:
                roots = groups.roots()
                keep &= roots[a] != roots[b]
            for one, other in _alike(table, a[keep], b[keep], threshold - slack):
                code = one * n + other
                if code not in seen:
                    seen.add(code)
                    if (groups is None or groups.root(one) != groups.root(other)) and (
                        share := overlap(one, other)
                    ) >= threshold:
                        yield one, other, share


def _alike(
    table: NDArray[np.uint32], a: NDArray[np.int64], b: NDArray[np.int64], least: float
) -> Iterator[Sequence[int]]:
    """The pairs whose signatures agree in `least` of their bins."""
    for first in range(0, len(a), 65_536):
        some_a, some_b = a[first : first + 65_536], b[first : first + 65_536]
        alike = (table[some_a] == table[some_b]).mean(axis=1) >= least
        yield from zip(some_a[alike].tolist(), some_b[alike].tolist(), strict=True)
