"""How many rows of logits exist at once, by the vocabulary alone. No torch: plans count with it too."""

from __future__ import annotations

from topcoat.kernels.row_counts import ROUND

# Logits that exist at once. The head is read and packed once a chunk, which few rows do not repay: measured on two
# cores with AMX, forward and gradient take 0.82 s with 256 rows, 0.66 with 512 and 0.61 with 1,024 (128,256 x 2,048,
# 1,024 rows in all), 0.23, 0.21 and 0.19 (49,152 x 576, 2,048 rows). Fixed by the vocabulary alone, so that the peak
# does not depend on what happens to be free.
CHUNK_BYTES = 128 * 2**20


def chunk_rows_of(vocab: int, element_bytes: int) -> int:
    """Rows whose logits exist at once, a multiple of ROUND between 64 and 1,024."""
    return min(1024, max(64, CHUNK_BYTES // (vocab * element_bytes) // ROUND * ROUND))


def loss_rows(rows: int, vocab: int, element_bytes: int) -> int:
    """Rows of a chunk when `rows` are cut into as few equal chunks as may be: a short last one wastes a pass."""
    chunks = max(1, -(-rows // chunk_rows_of(vocab, element_bytes)))
    return max(ROUND, -(-rows // chunks // ROUND) * ROUND)
