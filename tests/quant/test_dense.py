"""Plain formats: exact where the dtype is the checkpoint's, and honest where it is too small."""

import pytest
import torch

from topcoat.errors import TopcoatError
from topcoat.quant.dense import Dense
from topcoat.quant.settings import DenseConfig


def test_the_checkpoints_own_dtype_is_kept_without_a_copy():
    weight = torch.randn(3, 4).bfloat16()
    assert Dense(DenseConfig()).quantize(weight).tensors["weight"].data_ptr() == weight.data_ptr()


def test_weights_too_large_for_fp16_are_counted():
    weight = torch.tensor([[1.0, 7e4], [-1e5, 2.0]])
    with pytest.raises(TopcoatError, match=r"2 of 4 weights do not fit fp16: the largest is 1e\+05") as caught:
        Dense(DenseConfig(format="fp16")).quantize(weight)
    assert "bf16" in caught.value.problems[0].fix
