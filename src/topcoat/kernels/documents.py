"""Where documents lie in a batch, so that attention can be computed inside each and nowhere else.

A packed or padded batch is flattened to one run of tokens; each document is a span of it. Documents of similar length
form a bucket, are gathered into (n, L) with right padding, attended causally, and scattered back. Causality alone keeps
the padding out: no real query looks to its right, and what padded queries compute is never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STEP = 16  # bucket lengths are multiples of this: few distinct shapes, so oneDNN builds few kernels (about 0.5 MB each)
WASTE = 0.15  # most padding in a bucket, as a share of its tokens; a bmm call costs more than that much extra work


@dataclass(frozen=True)
class Bucket:
    """Documents of similar length: `index` (n * L,) finds their tokens in the flat batch, padding points at token 0."""

    documents: int
    length: int
    index: Tensor  # (n * L,) int64
    real: Tensor | None  # (n * L,) bool, None when nothing is padded

    def gather(self, flat: Tensor) -> Tensor:
        """flat (T, H, K) -> (n, H, L, K)."""
        rows = flat.index_select(0, self.index)
        return rows.view(self.documents, self.length, *flat.shape[1:]).transpose(1, 2)

    def gather_or_zero(self, flat: Tensor) -> Tensor:
        """Like gather, with zeros where there is padding: for gradients, which padding must not feed."""
        rows = flat.index_select(0, self.index)
        if self.real is not None:
            rows.masked_fill_(~self.real[:, None, None], 0)
        return rows.view(self.documents, self.length, *flat.shape[1:]).transpose(1, 2)

    def scatter(self, values: Tensor, out: Tensor) -> None:
        """values (n, H, L, K) -> the bucket's rows of out (T, H, K)."""
        rows = values.transpose(1, 2).reshape(-1, *out.shape[1:])
        if self.real is None:
            out.index_copy_(0, self.index, rows)
        else:
            out.index_copy_(0, self.index[self.real], rows[self.real])


@dataclass(frozen=True)
class Documents:
    """All documents of one batch; built once on the host, used by every layer."""

    tokens: int
    buckets: tuple[Bucket, ...]


def documents(spans: Sequence[tuple[int, int]], tokens: int, device: torch.device | str = "cpu") -> Documents:
    """The buckets of `spans`, each (start, length) in a flat batch of `tokens` positions.

    Longest first; a document joins the current bucket while the bucket's padding stays under `WASTE`.
    """
    groups: list[list[tuple[int, int]]] = []
    used = 0
    for span in sorted(spans, key=lambda s: (-s[1], s[0])):
        if groups and used + span[1] >= (1 - WASTE) * groups[-1][0][1] * (len(groups[-1]) + 1):
            groups[-1].append(span)
            used += span[1]
        else:
            groups.append([span])
            used = span[1]
    return Documents(tokens, tuple(_bucket(group, device) for group in groups))


def _bucket(spans: list[tuple[int, int]], device: torch.device | str) -> Bucket:
    length = -(-spans[0][1] // STEP) * STEP
    starts = torch.tensor([start for start, _ in spans])[:, None]  # (n, 1)
    lengths = torch.tensor([n for _, n in spans])[:, None]
    steps = torch.arange(length)[None, :]
    real = steps < lengths  # (n, L)
    index = torch.where(real, starts + steps, 0).flatten()
    padded = not bool(real.all())
    return Bucket(len(spans), length, index.to(device), real.flatten().to(device) if padded else None)
