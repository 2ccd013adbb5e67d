"""How many rows the end of a model computes, and how many of their logits exist at once. No torch: plans count too.

All numbers of rows are rounded up: every new one makes oneDNN build new kernels for all products that see it, which
take 0.4 to 0.7 MB each, stay, and cost more than the few rows do.
"""

from __future__ import annotations

# Logits that exist at once. The head is read and packed once a chunk, which few rows do not repay: measured on two
# cores with AMX, forward and gradient take 0.82 s with 256 rows, 0.66 with 512 and 0.61 with 1,024 (128,256 x 2,048,
# 1,024 rows in all), 0.23, 0.21 and 0.19 (49,152 x 576, 2,048 rows). Fixed by the vocabulary alone, so that the peak
# does not depend on what happens to be free.
CHUNK_BYTES = 128 * 2**20
ROUND = 64
"""Tokens of a packed batch, rows of logits, and positions of the last block in small batches are a multiple."""
MANY = 256
"""Positions of the last block are a multiple of this in batches of 1,024 tokens and more."""
MOST_ROWS = 0.9
"""Above this share of needed rows, computing only those in the last block saves less than gathering them costs."""


def last_rows(needed: int, tokens: int) -> int:
    """Positions of a batch of `tokens` that the last block computes where `needed` are asked for."""
    step = MANY if tokens >= 1024 else ROUND
    rounded = -(-needed // step) * step
    return tokens if rounded > MOST_ROWS * tokens else rounded


def chunk_rows_of(vocab: int, element_bytes: int) -> int:
    """Rows whose logits exist at once, a multiple of ROUND between 64 and 1,024."""
    return min(1024, max(64, CHUNK_BYTES // (vocab * element_bytes) // ROUND * ROUND))


def loss_rows(rows: int, vocab: int, element_bytes: int) -> int:
    """Rows of a chunk when `rows` are cut into as few equal chunks as may be: a short last one wastes a pass."""
    chunks = max(1, -(-rows // chunk_rows_of(vocab, element_bytes)))
    return max(ROUND, -(-rows // chunks // ROUND) * ROUND)
