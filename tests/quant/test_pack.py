"""Two codes to a byte."""

from hypothesis import given
from hypothesis import strategies as st
from torch import tensor, uint8

from topcoat.kernels.packed_codes import unpack_flat
from topcoat.quant.pack import pack


@given(st.lists(st.integers(0, 15), min_size=1, max_size=70))
def test_codes_come_back(codes):
    packed = pack(tensor(codes, dtype=uint8))
    assert packed.numel() == (len(codes) + 1) // 2
    assert unpack_flat(packed, len(codes)).tolist() == codes


def test_the_first_code_is_the_high_nibble_and_an_odd_last_one_is_filled():
    assert pack(tensor([1, 2, 3]), fill=7).tolist() == [0x12, 0x37]
