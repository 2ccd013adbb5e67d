"""Long products in blocks are no less exact than in one piece."""

from __future__ import annotations

import pytest
import torch

from topcoat.kernels.long_product import BLOCKS, long_product


@pytest.mark.parametrize("blocks", [0.01, 1, 1.01, 3.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_product(blocks: float, dtype: torch.dtype) -> None:
    K = int(blocks * BLOCKS[dtype])
    generator = torch.Generator().manual_seed(K)
    a, b = torch.randn(33, K, generator=generator).to(dtype), torch.randn(K, 21, generator=generator).to(dtype)
    truth = a.double() @ b.double()
    found = long_product(a, b, torch.empty(33, 21, dtype=dtype))
    plain = a @ b
    allowed = 2 * float((plain.double() - truth).abs().max()) + 1e-6
    assert float((found.double() - truth).abs().max()) <= allowed
