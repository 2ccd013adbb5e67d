"""What a process takes on a CPU beside the tensors that a bill counts, term by term.

    before the model   Python, torch, transformers and what the run imports
    tokenizer          B bytes for each entry of its vocabulary: the tables of merges and pieces
    libraries          code pages that computing touches, and what oneDNN takes at once for the first products
    compiled products  what it keeps of every product in 16 bits whose number of rows is new, where none are our own
    temporaries        what the operations of a layer hold beside its buffers

Each is the difference of two readings of /proc/self/status in a run of SmolLM2-135M, or of the shape of Qwen2.5-0.5B
for the vocabulary (Linux, x86, torch 2.13, glibc 2.36, 2 threads). Freed memory that the C library keeps is no term:
a run gives it back before its first step (`training/memory.py`). `bench/plan` measures how well their sum predicts.
"""

from __future__ import annotations

import math

from topcoat.kernels.recompute import BlockSizes

PROCESS_BYTES = 465 * 10**6
"""Before any model is loaded; 155 MB of it are pages of the libraries' files."""
TOKEN_BYTES = 1000
"""An entry of the vocabulary: 48 MB with 49,152 of them, 150 MB with 151,936."""
LIBRARY_BYTES = 75 * 10**6
"""25 MB of code pages between the first import and the end of a step, 50 MB of what oneDNN takes at once."""

PRODUCT_BYTES = 600_000
"""What oneDNN keeps of a product in 16 bits that it built for one number of rows: over 70 steps of chat rows on a
processor without AMX the process grew by 323 MB with 540 of them, after the 140 MB of rehearsal and validation."""
KINDS = ((22, 64 * 1.6), (16, 256), (4, 64 * 1.45))
"""Products of a step with stacked weights and LoRA by what their rows are (tokens, positions of the last block, rows of
logits), and of how many tokens of a micro batch each number of them comes up once: multiples of 64 and 256, of which 70
steps of chat rows in 2,048 tokens met 17 of 32, 8 of 8 and 20 of 32."""
OTHER_BATCHES = 4
"""Batches of a run beside those of its steps: the rehearsal and some validation."""
MOST_BUILT = 1024
"""Products that oneDNN keeps at once; the oldest goes first."""
SAME_LENGTH = 1.1
"""Examples count as of one length while the longest is at most this times their mean."""

THREADS = 2


def library_bytes(vocab: int) -> int:
    """What the tokenizer and the libraries take once they work."""
    return TOKEN_BYTES * vocab + LIBRARY_BYTES


def product_bytes(
    tokens: int,
    longest: float,
    mean: float,
    compute_dtype: str,
    *,
    ours: bool,
    batches: float | None,
    packing: bool = True,
) -> int:
    """What oneDNN keeps of the products that it builds in a run of `batches` micro batches of up to `tokens` positions.

    `longest` and `mean` are lengths of examples. Without a number of `batches` every number of rows comes up that can.
    `ours` says that hand-written blocks compute on a processor with AMX: in bf16 they multiply in code of ours, which
    builds nothing. In fp32 oneDNN has no part in it. Without `packing` no number of rows is rounded.
    """
    if compute_dtype == "fp32" or (ours and compute_dtype == "bf16"):
        return 0
    alike = longest <= SAME_LENGTH * mean
    possible = (tokens / step if packing else tokens for _, step in KINDS)
    met = [1.0 if alike else _met(max(1.0, numbers), batches) for numbers in possible]
    built = sum(products * numbers for (products, _), numbers in zip(KINDS, met, strict=True))
    return round(PRODUCT_BYTES * min(MOST_BUILT, built))


def _met(possible: float, batches: float | None) -> float:
    """How many of `possible` numbers, equally likely, come up in so many batches."""
    drawn = math.inf if batches is None else batches + OTHER_BATCHES
    return possible * (1 - math.exp(-drawn / possible))


def temporary_bytes(size: BlockSizes, tokens: int, element_bytes: int) -> int:
    """What the operations of a layer hold beside its buffers, for documents of up to `tokens`.

    In 16 bits that is the scratch of attention's backward: tiles and sums of one head for each of two threads, and sums
    of all key heads where threads share a document (native/attention_backward.c). In other dtypes torch gathers q, k,
    v, the answers and their gradient in tensors of their own, and forms the gradients of q, k and v in such. The scores
    of a tile lie in the buffer that the logits need more of (`kernels/scratch.py`).
    """
    if element_bytes != 4:
        return tokens * (THREADS * 14 * size.query // size.heads + 8 * size.key_value)
    return element_bytes * tokens * (5 * size.query + 4 * size.key_value)
