"""How many rows a batch and the end of a model compute. No torch: plans count with it too.

All are rounded up. oneDNN builds kernels for every number of rows that a product meets, takes 0.4 MB for each product
and keeps up to 1,024 of them: a step of SmolLM2-135M with any number of rows adds about 20 MB.
"""

from __future__ import annotations

ROUND = 64
"""Tokens of a packed batch, and rows of logits, are a multiple of this."""
MANY_TOKENS, MANY_ROUND = 1024, 256
"""In batches of so many tokens the rows of the last block are a multiple of the second, in others of ROUND."""
MOST_ROWS = 0.9
"""Above this share of needed rows, computing only those in the last block saves less than gathering them costs."""


def last_rows(needed: int, tokens: int) -> int:
    """Positions of a batch of `tokens` that the last block computes where `needed` are asked for."""
    step = MANY_ROUND if tokens >= MANY_TOKENS else ROUND
    rounded = -(-needed // step) * step
    return tokens if rounded > MOST_ROWS * tokens else rounded
