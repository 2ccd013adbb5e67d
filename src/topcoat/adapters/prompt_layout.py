"""Where virtual tokens stand in a batch: before the first token of every document, which keep their own positions.

    a document x_0 .. x_(t-1) becomes v_0 .. v_(n-1) x_0 .. x_(t-1), at positions 0 .. n + t - 1

Rows packed with several documents get the n tokens once for each of them; rows padded on the left (generation) get them
behind the padding, so that a document and its virtual tokens are one run, whatever is around it. Sliding windows,
caches and masks then treat them as any other token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from topcoat.kernels.documents import Documents, documents
from topcoat.kernels.row_counts import ROUND


@dataclass(frozen=True)
class Layout:
    """One widened batch: B rows of W positions, made of B rows of T tokens."""

    shape: tuple[int, int]
    """(B, W)."""
    home: Tensor
    """(B * T,) int64: the flat position of every token."""
    virtual: Tensor
    """(m * n,) int64: the flat positions of the virtual tokens, those of one document together and in order."""
    documents: int
    """m."""

    def spread(self, tokens: Tensor, virtual: Tensor) -> Tensor:
        """tokens (B, T, ...) and one document's virtual ones (n, ...) -> (B, W, ...), zero at filling."""
        flat = tokens.new_zeros(self.shape[0] * self.shape[1], *tokens.shape[2:]).index_copy(
            0, self.home, tokens.flatten(0, 1)
        )
        return self.put(flat, virtual).unflatten(0, self.shape)

    def put(self, flat: Tensor, virtual: Tensor) -> Tensor:
        """flat (B * W, ...) with one document's virtual tokens (n, ...) at their places in every document."""
        return flat.index_copy(0, self.virtual, virtual.to(flat.dtype).repeat(self.documents, *[1] * (flat.dim() - 1)))

    def gather(self, wide: Tensor) -> Tensor:
        """wide (B, W, ...) -> (B, T, ...), the tokens alone."""
        return wide.flatten(0, 1).index_select(0, self.home).unflatten(0, (self.shape[0], -1))


def widen(given: dict[str, Any], tokens: Tensor, n: int) -> tuple[Layout, dict[str, Any]]:
    """The layout of a forward's `tokens` (B, T, ...) with `n` virtual ones a document, and the keywords that change.

    Documents begin where `documents` says, else at the first token of the mask, else where positions restart, else at
    the first column.
    """
    B, T = tokens.shape[:2]
    device = tokens.device
    spans: Documents | None = given.get("documents")
    first = spans.starts.to(device) if spans is not None else _first_tokens(given, B, T, device)  # (B * m,)
    m = _documents_a_row([at for at, _ in spans.spans] if spans is not None else first.tolist(), B, T)
    width = T + m * n
    if spans is not None and B == 1:
        width += -width % ROUND
    begun = torch.zeros(B * T, dtype=torch.int64, device=device).index_fill(0, first, 1).view(B, T).cumsum(1)
    rows = torch.arange(B, device=device)[:, None] * width
    home = (rows + torch.arange(T, device=device) + n * begun).flatten()  # (B * T,)
    steps = torch.arange(n, device=device)
    layout = Layout((B, width), home, (home[first][:, None] - n + steps).flatten(), len(first))
    changes: dict[str, Any] = {}
    if given.get("position_ids") is not None:
        changes["position_ids"] = layout.spread(given["position_ids"].expand(B, T) + n, steps)
    mask = given.get("attention_mask")
    if mask is not None and mask.dim() == 2:
        changes["attention_mask"] = layout.spread(mask, mask.new_ones(n))
    if spans is not None:
        changes["documents"] = _longer(spans, n, T, width, m)
    return layout, changes


def _longer(spans: Documents, n: int, T: int, width: int, per_row: int) -> Documents:
    """The same documents, each longer by `n`, where they lie in rows of `width` instead of `T`."""
    found = []
    for at, (start, length) in enumerate(spans.spans):
        row, column = divmod(start, T)
        found.append((row * width + column + n * (at % per_row), n + length))
    return documents(found, len(spans.spans) // per_row * width, spans.device)


def _documents_a_row(starts: Sequence[int], B: int, T: int) -> int:
    """m, how many of the documents that begin at `starts` lie in each of B rows of T tokens.

    Raises ValueError where rows differ: each is widened by n tokens a document, and all to one width.
    """
    counts = [0] * B
    for start in starts:
        counts[start // T] += 1
    if len(set(counts)) > 1:
        told = ", ".join(map(str, counts[:8])) + (", ..." if B > 8 else "")
        raise ValueError(f"{len(starts)} documents do not lie evenly in {B} rows: {told} in them")
    return counts[0]


def _first_tokens(given: dict[str, Any], B: int, T: int, device: torch.device) -> Tensor:
    """(B * m,) int64: the flat position of the first token of every document."""
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    if mask is not None and mask.dim() == 2:
        starts = (mask != 0) & (mask.cumsum(1) == 1)
    elif mask is None and positions is not None:
        starts = positions.expand(B, T) == 0
    else:
        return torch.arange(B, device=device) * T
    return starts.flatten().nonzero().flatten()
