"""int8 against bitsandbytes' row-wise quantization."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topcoat.quant.int8 import Int8
from topcoat.quant.settings import Int8Config

INT8 = Int8(Int8Config())


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 30),
    columns=st.integers(1, 150),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    magnitude=st.sampled_from([1.0, 1e-4, 100.0]),
    seed=st.integers(0, 2**31),
)
def test_codes_and_row_maxima_are_those_of_bitsandbytes(rows, columns, dtype, magnitude, seed):
    bnb = pytest.importorskip("bitsandbytes.functional")
    weight = (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * magnitude).to(dtype)
    if not (weight.abs().amax(1) > 0).all():
        return  # a row of zeros is 0 * inf there
    codes, absmax, _ = bnb.int8_vectorwise_quant(weight)
    ours = INT8.quantize(weight)
    assert torch.equal(ours.tensors["codes"], codes)
    assert torch.equal(ours.tensors["absmax"], absmax)
    theirs = bnb.int8_vectorwise_dequant(codes, absmax)
    torch.testing.assert_close(INT8.dequantize(ours, torch.float32), theirs, rtol=3e-7, atol=0)


def test_the_error_on_normal_weights_is_the_published_one():
    weight = torch.randn(256, 4096, generator=torch.Generator().manual_seed(0))
    error = INT8.dequantize(INT8.quantize(weight), torch.float32) - weight
    assert error.abs().mean() == pytest.approx(0.00748, abs=1e-4)
    assert error.square().mean().sqrt() == pytest.approx(0.00866, abs=1e-4)


def test_a_row_smaller_than_any_normal_number_stays_finite():
    q = INT8.quantize(torch.tensor([[1e-40, -1e-40, 0.0, 5e-41]]))
    assert torch.isfinite(INT8.dequantize(q, torch.float32)).all()
    assert q.tensors["codes"][0, 2] == 0


def test_rows_are_rebuilt_alike_in_every_piece():
    weight = torch.randn(700, 300, generator=torch.Generator().manual_seed(0))
    q = INT8.quantize(weight)
    expected = q.tensors["codes"].float() * (q.tensors["absmax"] / 127)[:, None]
    assert torch.equal(INT8.dequantize(q, torch.bfloat16), expected.bfloat16())
