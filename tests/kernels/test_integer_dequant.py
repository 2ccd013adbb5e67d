"""The compiled way of rebuilding integers gives the bits of the definition, and leaves the rest to it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_here import ISAS, native

from topcoat.kernels.integer_dequant import (
    dequantize_integers,
    dequantize_integers_native,
    dequantize_integers_reference,
)
from topcoat.kernels.packed_codes import unpack_bits
from topcoat.quant.bits import pack_bits


def stored(rows, columns, bits, group, seed=0):
    """Random codes, and scales and lows (some zero, some negative) in float16."""
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=draw).to(torch.uint8)
    scale, low = (torch.randn(rows, columns // group, generator=draw).half() for _ in range(2))
    scale[:, ::3], low[::2] = 0, 0
    return codes, codes if bits == 8 else pack_bits(codes, bits), scale, low


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    groups=st.integers(1, 7),
    group=st.sampled_from([16, 32, 48, 128]),
    bits=st.sampled_from([2, 3, 4, 8]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    beyond=st.integers(0, 3),
)
def test_compiled_code_gives_the_bits_of_the_definition(isa, rows, groups, group, bits, dtype, beyond):
    columns = groups * group
    codes, packed, scale, low = stored(rows, columns, bits, group)
    wide = torch.full((rows, columns + beyond), 7.0, dtype=dtype)  # rows may lie apart, and what is between them stays
    with native(isa):
        assert dequantize_integers_native(packed, scale, low, bits, wide[:, :columns])
    wanted = dequantize_integers_reference(packed, scale, low, bits, torch.empty(rows, columns, dtype=dtype))
    assert torch.equal(wide[:, :columns], wanted)
    assert bool((wide[:, columns:] == 7).all())
    in_float64 = codes.double().unflatten(1, (groups, -1)) * scale.double()[..., None] + low.double()[..., None]
    torch.testing.assert_close(wanted.double(), in_float64.flatten(1), rtol=2**-7, atol=2e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_row_of_codes_reads_back_in_its_order(bits):
    codes = torch.arange(48, dtype=torch.uint8)[None] % 2**bits
    assert torch.equal(unpack_bits(pack_bits(codes, bits), bits), codes)
    out = torch.empty(1, 48)
    assert torch.equal(
        dequantize_integers(pack_bits(codes, bits), torch.ones(1, 3), torch.zeros(1, 3), bits, out), codes
    )


def test_what_the_compiled_code_does_not_take_is_left_to_the_definition():
    _, packed, scale, low = stored(3, 96, 4, 24)
    out = torch.full((3, 96), 7.0)
    for wrong in (
        (packed, scale, low, 4, out),  # groups of 24
        (packed, *(x[:, :3].float() for x in (scale, low)), 4, out),  # a product with a float32 scale is not exact
        (packed.repeat(1, 2)[:, ::2], scale[:, :3], low[:, :3], 4, out),  # codes with gaps
        (packed, scale[:, :3], low[:, :3], 4, out.double()),
        (packed, scale[:2, :3], low[:2, :3], 4, out),
    ):
        assert not dequantize_integers_native(*wrong)
    assert bool((out == 7).all())
    wanted = dequantize_integers_reference(packed, scale, low, 4, torch.empty(3, 96))
    assert torch.equal(dequantize_integers(packed, scale, low, 4, out), wanted)
