"""Codes of 2, 3 and 4 bits against Python's integers."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from topcoat.kernels.packed_codes import unpack_bits
from topcoat.quant.bits import CODES, pack_bits


@given(st.sampled_from([2, 3, 4]), st.integers(1, 9), st.integers(0, 2**31))
def test_codes_are_the_bits_of_one_little_endian_number(bits, words, seed):
    count = words * CODES[bits]
    codes = torch.randint(0, 2**bits, (2, count), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack_bits(codes, bits)
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack_bits(packed, bits), codes)
    for row, stored in zip(codes.tolist(), packed.tolist(), strict=True):
        number = sum(code << bits * place for place, code in enumerate(row))
        assert bytes(stored) == number.to_bytes(count * bits // 8, "little")
