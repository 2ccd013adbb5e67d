"""A product whose inner side is long and whose rows are few: C (M, N) = A (M, K) B (K, N), summed over blocks of K.

In bf16 for speed. oneDNN shares a product among threads by rows and columns of C; with few of those and a long K it
leaves all of it to one thread. Measured on two cores with AMX, N = 576, 512 rows: 1,720 GFLOP/s at K = 2,048, 880 at
3,072, 734 at 49,152. In blocks of 2,048 with float32 sums the last is 1,190.

In float32 for exactness. MKL adds up all K in one sum on some processors: over 151,936 words the gradient of 5 hidden
states was off by 2.7e-5 of its largest number on an AMD EPYC with AVX-512, in blocks of 8,192 by 1.5e-6, at no cost.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCKS = {torch.bfloat16: 2048, torch.float32: 8192}
"""The longest K in one piece."""
FEW_ROWS = 1536
"""With 2,048 rows one bf16 product runs on all threads at any K. The sum in float32 is a tensor beside `out`: a small
one up to here."""


def long_product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a (M, K) @ b (K, N) into `out` (M, N); partial sums of long products on a CPU are float32."""
    K = a.shape[1]
    block = BLOCKS.get(a.dtype, K)
    if not a.is_cpu or block >= K or len(a) > FEW_ROWS:
        return torch.mm(a, b, out=out)
    total = torch.zeros(out.shape, dtype=torch.float32)
    for start in range(0, K, block):
        total += torch.mm(a[:, start : start + block], b[start : start + block], out=out)
    return out.copy_(total)
