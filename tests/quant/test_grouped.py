"""int2, int3 and int4 against a loop in float64, the published errors, and Q4_1 of GGUF."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topcoat.errors import TopcoatError
from topcoat.kernels.packed_codes import unpack_bits
from topcoat.quant.grouped import PIECE, Grouped
from topcoat.quant.settings import IntConfig


def by_definition(weight, bits, size, dtype):
    """Codes, and values in float64, by the formula in the module's first lines."""
    codes, values = np.zeros(weight.shape, np.int64), np.zeros(weight.shape)
    half = np.float16 if dtype == "fp16" else np.float32
    for o, row in enumerate(weight.double().numpy()):
        for start in range(0, len(row), size):
            group = row[start : start + size]
            low = float(half(min(group.min(), 0.0)))
            scale = float(half((max(group.max(), 0.0) - low) / (2**bits - 1)))
            for i, w in enumerate(group):
                code = min(max(round((w - low) / scale), 0), 2**bits - 1) if scale else 0
                codes[o, start + i], values[o, start + i] = code, code * scale + low
    return torch.from_numpy(codes), torch.from_numpy(values)


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4]),
    size=st.sampled_from([16, 32, 64]),
    dtype=st.sampled_from(["fp16", "fp32"]),
    shift=st.sampled_from([0.0, 0.7, -3.0]),
    seed=st.integers(0, 2**31),
)
def test_codes_and_values_are_those_of_a_loop_in_double_precision(bits, size, dtype, shift, seed):
    weight = torch.randn(3, 128, generator=torch.Generator().manual_seed(seed)) + shift
    format = Grouped(IntConfig(format=f"int{bits}", group_size=size, scale_dtype=dtype))
    q = format.quantize(weight)
    codes, values = by_definition(weight, bits, size, dtype)
    apart = unpack_bits(q.tensors["codes"], bits).long() != codes
    assert apart.float().mean() <= 0.01  # float32 may decide a tie, or the last bit of a scale, the other way
    found = format.dequantize(q, torch.float64)
    step = values.abs().amax() / 2**9
    assert ((found - values).abs() > step)[~apart].sum() == 0


@pytest.mark.parametrize(
    ("bits", "size", "mae", "rmse"),
    [(4, 32, 0.06469, 0.07820), (4, 64, 0.07574, 0.08966), (4, 128, 0.08523, 0.09981), (3, 32, 0.13879, 0.16774),
     (2, 32, 0.32567, 0.39279), (2, 64, 0.38104, 0.45023)],
)  # fmt: skip
def test_the_error_on_normal_weights_is_the_published_one(bits, size, mae, rmse):
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(bits))
    format = Grouped(IntConfig(format=f"int{bits}", group_size=size))
    error = format.dequantize(format.quantize(weight), torch.float32) - weight
    assert error.abs().mean() == pytest.approx(mae, rel=3e-3)
    assert error.square().mean().sqrt() == pytest.approx(rmse, rel=3e-3)


def test_it_spans_the_groups_of_gguf_q4_1():
    """Where a group holds both signs, scale and low are d and m of a Q4_1 block, and codes differ only where d's
    rounding decides."""
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(2))
    ours = Grouped(IntConfig(format="int4")).quantize(weight).tensors
    blocks = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q4_1).reshape(16, 8, 20)
    d, m = (torch.from_numpy(blocks[..., at : at + 2].copy()).view(torch.float16)[..., 0] for at in (0, 2))
    torch.testing.assert_close(ours["scale"].float(), d.float(), rtol=2**-9, atol=0)
    assert torch.equal(ours["low"], m)
    nibbles = torch.from_numpy(blocks[..., 4:].copy())
    theirs = torch.cat((nibbles & 15, nibbles >> 4), dim=-1).flatten(1)
    assert (unpack_bits(ours["codes"], 4) != theirs).float().mean() < 0.01


def test_pieces_make_no_difference():
    weight = torch.randn(2 * PIECE // 4096 + 3, 4096, generator=torch.Generator().manual_seed(2))
    format = Grouped(IntConfig(format="int3"))
    whole = format.dequantize(format.quantize(weight), torch.float32)
    rows = [format.dequantize(format.quantize(row[None]), torch.float32) for row in weight[-5:]]
    assert torch.equal(whole[-5:], torch.cat(rows))


def test_an_int4_weight_takes_five_bits_in_groups_of_32():
    assert 8 * Grouped(IntConfig()).nbytes(4096, 4096) / 4096**2 == 5.0
    assert 8 * Grouped(IntConfig(format="int2", group_size=64)).nbytes(4096, 4096) / 4096**2 == 2.5


def test_a_group_size_that_does_not_divide_is_refused_with_those_that_do():
    with pytest.raises(TopcoatError, match="group_size 128 does not divide rows of 576 weights") as caught:
        Grouped(IntConfig(group_size=128)).quantize(torch.zeros(2, 576))
    assert caught.value.problems[0].fix == "use a group_size of 16 or 32 or 64"
    with pytest.raises(TopcoatError, match="rows of 33 weights") as caught:
        Grouped(IntConfig()).check_shape(7, 33)
    assert "nf4 or int8" in caught.value.problems[0].fix


def test_weights_too_large_for_half_precision_scales_are_refused_with_advice():
    with pytest.raises(TopcoatError, match="too large for scales in fp16") as caught:
        Grouped(IntConfig()).quantize(torch.full((4, 64), -1e6))
    assert "scale_dtype: fp32" in caught.value.problems[0].fix
