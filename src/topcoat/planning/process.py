"""What a process takes on a CPU beside the tensors that a bill counts, term by term.

    before the model   Python, torch, transformers and what the run imports
    tokenizer          B bytes for each entry of its vocabulary: the tables of merges and pieces
    libraries          code pages that computing touches, and the products that oneDNN compiles and their scratch
    temporaries        what the operations of a layer hold beside its buffers

Each is the difference of two readings of /proc/self/status in a run of SmolLM2-135M, or of the shape of Qwen2.5-0.5B
for the vocabulary (Linux, x86, torch 2.13, glibc 2.36, 2 threads). Freed memory that the C library keeps is no term:
a run gives it back before its first step (`training/memory.py`). `bench/plan` measures how well their sum predicts.
"""

from __future__ import annotations

from topcoat.kernels.loss_chunks import ROUND
from topcoat.kernels.recompute import BlockSizes

PROCESS_BYTES = 465 * 10**6
"""Before any model is loaded; 155 MB of it are pages of the libraries' files."""
TOKEN_BYTES = 1000
"""An entry of the vocabulary: 48 MB with 49,152 of them, 150 MB with 151,936."""
LIBRARY_BYTES = 75 * 10**6
"""25 MB of code pages between the first import and the end of a step, 50 MB of compiled products and their scratch."""

PRODUCT_BYTES = 370_000
"""What oneDNN keeps, for good, of a product in 16 bits that it builds for one number of rows: 124 MB over the 338 that
four steps of chat rows built."""
PRODUCTS = 42
"""Different products of a step whose rows are as many as the tokens, the labelled ones or those of a piece of the loss:
22, 16 and 4 with stacked weights and LoRA."""
VARIED = 8
"""Numbers of rows that packed examples of many lengths bring up, in the numbers of one length."""

LIKE = 1.1
"""Examples are of one length where the longest is less than this of their mean."""

THREADS = 2
TILE = 256
"""Queries at once in `kernels/attention_tiled.py`, which needs torch; a test holds the two equal."""


def library_bytes(vocab: int) -> int:
    """What the tokenizer and the libraries take once they work."""
    return TOKEN_BYTES * vocab + LIBRARY_BYTES


def product_bytes(tokens: int, *, varied: bool) -> int:
    """What the products that oneDNN builds take, in micro batches of up to `tokens`; `varied` where examples differ in
    length. On processors with AMX the hand-written blocks multiply in code of ours, which builds nothing."""
    return PRODUCT_BYTES * PRODUCTS * (min(VARIED, max(1, tokens // ROUND)) if varied else 1)


def temporary_bytes(size: BlockSizes, tokens: int, element_bytes: int) -> int:
    """What the operations of a layer hold beside its buffers, for documents of up to `tokens`.

    In 16 bits that is the scratch of attention's backward: tiles and sums of one head for each of two threads, and sums
    of all key heads where threads share a document (native/attention_backward.c). In other dtypes torch gathers q, k,
    v and the answers in tensors of their own, beside them their gradients, and the scores of a tile of queries stand
    twice: as shares, and as gradients (kernels/attention_tiled.py).
    """
    if element_bytes != 4:
        return tokens * (THREADS * 14 * size.query // size.heads + 8 * size.key_value)
    gathered = tokens * (5 * size.query + 4 * size.key_value)
    return element_bytes * (gathered + 2 * size.heads * TILE * tokens)
