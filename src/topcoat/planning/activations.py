"""What the hand-written blocks hold for a micro batch: kept by each layer's policy, and shared by all of them.

    kept    = sum over layers of T * (policy's numbers * e + 4 heads) + T * R * e
    working = T * (norms, gradients of each product, and one copy of whatever some layer drops) * e

These are the buffers of `kernels/decoder.py` by name; a test compares the sum with the arena's own bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from topcoat.kernels.recompute import KEPT, BlockSizes, Policy


@dataclass(frozen=True)
class Ranks:
    """Rank of the stacked adapters of one layer's four projections; 0 where nothing is adapted."""

    qkv: int
    o: int
    gate_up: int
    down: int

    @classmethod
    def of_rank(cls, r: int) -> Ranks:
        """Rank `r` on all seven linears of a block."""
        return cls(3 * r, r, 2 * r, r)

    @property
    def total(self) -> int:
        """Numbers of h that one token keeps."""
        return self.qkv + self.o + self.gate_up + self.down

    @property
    def largest(self) -> int:
        """Numbers of u at once."""
        return max(self.qkv, self.o, self.gate_up, self.down)


def kept_bytes(
    sizes: Sequence[BlockSizes],
    ranks: Sequence[Ranks],
    policies: Sequence[Policy],
    tokens: int,
    rows: int,
    element_bytes: int,
) -> int:
    """What waits for the backward, over all layers, when the last block computes `rows` of the `tokens` after its
    attention. The first layer's input is the embedding's output."""
    total = tokens * sum(
        size.token_bytes(policy, element_bytes) + rank.total * element_bytes
        for size, rank, policy in zip(sizes, ranks, policies, strict=True)
    )
    after = sizes[-1].kept_after_attention(policies[-1]) + ranks[-1].total - ranks[-1].qkv
    return total - (tokens - rows) * after * element_bytes


def working_bytes(
    sizes: Sequence[BlockSizes],
    ranks: Sequence[Ranks],
    policies: Sequence[Policy],
    tokens: int,
    rows: int,
    element_bytes: int,
) -> int:
    """Buffers that all layers share, when the last block computes `rows` of the `tokens` after its attention."""
    size, rank = sizes[0], max(rank.largest for rank in ranks)
    qkv = size.query + 2 * size.key_value
    numbers = 3 * size.hidden + size.mlp + qkv + size.query + rank  # n, dn, dy, dh, dqkv, do, u
    if size.head_norms:
        numbers += size.query + size.key_value
    if size.post_norms:
        numbers += size.hidden
    widths = {"qkv": qkv, "attended": size.query, "x2": size.hidden, "gate_up": 2 * size.mlp}
    widths["mixed"] = size.hidden if size.post_norms else 0
    if "offload" in policies:  # the embedding's output, two buffers that inputs take turns in, two slots to the host
        numbers += 5 * size.hidden
    kept_by_all = frozenset.intersection(*(KEPT[policy] for policy in policies))
    numbers += sum(width for name, width in widths.items() if name not in kept_by_all)
    total = tokens * numbers
    if rows < tokens:  # gathered rows of the input, of attention's answer and of the gradient; the latter spread out
        total += rows * (2 * size.hidden + size.query) + tokens * size.query
    return total * element_bytes
