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

from topcoat.kernels.recompute import BlockSizes
from topcoat.kernels.row_counts import ROUND

PROCESS_BYTES = 465 * 10**6
"""Before any model is loaded; 155 MB of it are pages of the libraries' files."""
TOKEN_BYTES = 1000
"""An entry of the vocabulary: 48 MB with 49,152 of them, 150 MB with 151,936."""
LIBRARY_BYTES = 75 * 10**6
"""25 MB of code pages between the first import and the end of a step, 50 MB of what oneDNN takes at once."""

PRODUCT_BYTES = 370_000
"""What oneDNN keeps of a product in 16 bits that it built for one number of rows: 124 MB for the 338 of some steps of
chat rows."""
PRODUCTS = 42
"""Products of a step with stacked weights and LoRA, by what their rows are: 22 tokens, 16 positions of the last block,
4 rows of logits."""
MOST_COUNTS = 8
"""Packed examples of many lengths bring up many numbers of rows: five steps of chat rows 6 to 12 of each kind."""
SAME_LENGTH = 1.1
"""Examples count as of one length while the longest is at most this times their mean."""

THREADS = 2


def library_bytes(vocab: int) -> int:
    """What the tokenizer and the libraries take once they work."""
    return TOKEN_BYTES * vocab + LIBRARY_BYTES


def product_bytes(tokens: int, longest: float, mean: float, compute_dtype: str, *, ours: bool) -> int:
    """What oneDNN keeps of the products that it builds, in micro batches of up to `tokens` positions.

    `longest` and `mean` are lengths of examples. `ours` says that hand-written blocks compute on a processor with AMX:
    in bf16 they multiply in code of ours, which builds nothing. In fp32 oneDNN has no part in it.
    """
    if compute_dtype == "fp32" or (ours and compute_dtype == "bf16"):
        return 0
    counts = min(MOST_COUNTS, max(1, tokens // ROUND)) if longest > SAME_LENGTH * mean else 1
    return PRODUCT_BYTES * PRODUCTS * counts


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
