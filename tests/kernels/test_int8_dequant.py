"""The compiled way of rebuilding int8 gives the bits of the definition, and leaves the rest to it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_here import ISAS, native

from topcoat.kernels.int8_dequant import dequantize_int8, dequantize_int8_native, dequantize_int8_reference


def stored(rows, columns):
    """Codes of every size, and row maxima, one of them zero."""
    draw = torch.Generator().manual_seed(rows * 100 + columns)
    codes = torch.randint(-127, 128, (rows, columns), generator=draw).to(torch.int8)
    absmax = torch.rand(rows, generator=draw) * 3
    absmax[0] = 0
    return codes, absmax


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    beyond=st.integers(0, 3),
)
def test_compiled_code_gives_the_bits_of_the_definition(isa, rows, columns, dtype, beyond):
    codes, absmax = stored(rows, columns)
    wide = torch.full((rows, columns + beyond), 7.0, dtype=dtype)  # rows may lie apart, and what is between them stays
    with native(isa):
        assert dequantize_int8_native(codes, absmax, wide[:, :columns])
    wanted = dequantize_int8_reference(codes, absmax, torch.empty(rows, columns, dtype=dtype))
    assert torch.equal(wide[:, :columns], wanted)
    assert bool((wide[:, columns:] == 7).all())
    in_float64 = codes.double() * absmax.double()[:, None] / 127
    torch.testing.assert_close(wanted.double(), in_float64, rtol=2**-8 if dtype == torch.bfloat16 else 2**-22, atol=0)


def test_what_the_compiled_code_does_not_take_is_left_to_the_definition():
    codes, absmax = stored(3, 48)
    out = torch.full((3, 48), 7.0)
    for wrong in (
        (codes.repeat(1, 2)[:, ::2], absmax, out),  # codes with gaps
        (codes.to(torch.uint8), absmax, out),
        (codes, absmax.double(), out),
        (codes, absmax, out.double()),
        (codes, absmax[:2], out),
    ):
        assert not dequantize_int8_native(*wrong)
    assert bool((out == 7).all())
    assert torch.equal(
        dequantize_int8(codes, absmax, out.double()), dequantize_int8_reference(codes, absmax, out.double())
    )
