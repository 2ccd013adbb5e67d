"""Where documents lie in a batch, so that attention can be computed inside each and nowhere else.

A packed or padded batch is flattened to one run of tokens; each document is a span of it. Documents of similar length
form a bucket, are gathered into (n, L) with right padding, attended causally, and scattered back. Causality alone keeps
the padding out: no real query looks to its right, and what padded queries compute is never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from topcoat.kernels.native.calls import settle

STEP = 16  # bucket lengths are multiples of this: few distinct shapes, so oneDNN builds few kernels (about 0.5 MB each)
WASTE = 0.15  # most padding in a bucket, as a share of its tokens; a bmm call costs more than that much extra work


@dataclass(frozen=True)
class Bucket:
    """Documents of similar length: `index` (n * L,) finds their tokens in the flat batch, padding points at token 0."""

    documents: int
    length: int
    index: Tensor  # (n * L,) int64
    real: Tensor | None  # (m,) int64: which of the n * L are not padding, None when all are
    padding: Tensor | None  # (n * L,) bool, None when there is none
    home: Tensor  # (m,) int64: index without the padding

    def gather(self, flat: Tensor) -> Tensor:
        """flat (T, H, K) -> (n, H, L, K)."""
        rows = flat.index_select(0, self.index)
        return rows.view(self.documents, self.length, *flat.shape[1:]).transpose(1, 2)

    def gather_or_zero(self, flat: Tensor) -> Tensor:
        """Like gather, with zeros where there is padding: for gradients, which padding must not feed."""
        rows = flat.index_select(0, self.index)
        if self.padding is not None:
            rows.masked_fill_(self.padding[:, None, None], 0)
        return rows.view(self.documents, self.length, *flat.shape[1:]).transpose(1, 2)

    def scatter(self, values: Tensor, out: Tensor) -> None:
        """values (n, H, L, K) -> the bucket's rows of out (T, H, K)."""
        rows = values.transpose(1, 2).reshape(-1, *out.shape[1:])
        out.index_copy_(0, self.home, rows if self.real is None else rows.index_select(0, self.real))


@dataclass(frozen=True)
class Documents:
    """All documents of one batch: their spans, and what each way to compute attention wants to know of them.

    Everything is made on the host, at most once, and used by every layer: no kernel is waited for.
    """

    tokens: int
    spans: tuple[tuple[int, int], ...]  # (start, length) of each, in the order of their starts, without overlap
    device: torch.device

    @cached_property
    def starts(self) -> Tensor:
        """(n,) int64 on the host."""
        return torch.tensor([start for start, _ in self.spans], dtype=torch.int64)

    @cached_property
    def lengths(self) -> Tensor:
        """(n,) int64 on the host."""
        return torch.tensor([length for _, length in self.spans], dtype=torch.int64)

    @cached_property
    def gaps(self) -> tuple[tuple[int, int], ...]:
        """(start, length) of every run of positions that belongs to no document."""
        ends = [0, *(start + length for start, length in self.spans)]
        starts = [*(start for start, _ in self.spans), self.tokens]
        return tuple((end, start - end) for end, start in zip(ends, starts, strict=True) if start > end)

    @cached_property
    def longest(self) -> int:
        """Positions in the longest run that `borders` delimits."""
        return max((length for _, length in (*self.spans, *self.gaps)), default=0)

    @cached_property
    def borders(self) -> Tensor:
        """(m + 1,) int32 on the device: where runs begin and end, a gap being a run of its own (`cu_seqlens`)."""
        starts = sorted(start for start, _ in (*self.spans, *self.gaps))
        return torch.tensor([*starts, self.tokens], dtype=torch.int32).to(self.device)

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """Longest first; a document joins the current bucket while the bucket's padding stays under `WASTE`."""
        groups: list[list[tuple[int, int]]] = []
        used = 0
        for span in sorted(self.spans, key=lambda s: (-s[1], s[0])):
            if groups and used + span[1] >= (1 - WASTE) * groups[-1][0][1] * (len(groups[-1]) + 1):
                groups[-1].append(span)
                used += span[1]
            else:
                groups.append([span])
                used = span[1]
        return tuple(_bucket(group, self.device) for group in groups)

    def clear_gaps(self, flat: Tensor) -> None:
        """Zeros in the rows of flat (T, ...) that belong to no document."""
        if self.gaps:
            settle()
        for start, length in self.gaps:
            flat[start : start + length].zero_()


@dataclass(frozen=True)
class StaticDocuments:
    """Documents whose borders lie on the device alone, so that they may differ each time a graph is replayed.

    They leave no position out: what fills a batch up is a document too. Documents of no length stand at the end.
    """

    tokens: int
    borders: Tensor
    """(m + 1,) int32 on the device, as `Documents.borders`."""
    longest: int
    """Positions that no document exceeds, whatever the borders say later."""

    def clear_gaps(self, flat: Tensor) -> None:
        """There are none."""


Layout = Documents | StaticDocuments


def documents(spans: Sequence[tuple[int, int]], tokens: int, device: torch.device | str = "cpu") -> Documents:
    """The documents at `spans`, each (start, length), of a flat batch of `tokens` positions; empty ones are dropped.

    Raises ValueError when they overlap or leave the batch.
    """
    present = sorted(span for span in spans if span[1])
    ends = [0, *(start + length for start, length in present)]
    if any(start < end for (start, _), end in zip(present, ends, strict=False)) or ends[-1] > tokens:
        raise ValueError(f"documents overlap or end beyond {tokens} tokens: {present}")
    return Documents(tokens, tuple(present), torch.device(device))


def _bucket(spans: list[tuple[int, int]], device: torch.device) -> Bucket:
    length = -(-spans[0][1] // STEP) * STEP
    starts = torch.tensor([start for start, _ in spans])[:, None]  # (n, 1)
    lengths = torch.tensor([n for _, n in spans])[:, None]
    steps = torch.arange(length)[None, :]
    inside = (steps < lengths).flatten()  # (n * L,)
    index = (starts + steps).flatten().masked_fill_(~inside, 0)
    if inside.all():
        home = index.to(device)
        return Bucket(len(spans), length, home, None, None, home)
    real = inside.nonzero().flatten()
    parts = (x.to(device) for x in (index, real, ~inside, index[real]))
    return Bucket(len(spans), length, *parts)
