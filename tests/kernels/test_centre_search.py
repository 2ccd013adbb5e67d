"""The compiled search finds the very centre that the definition finds, in every instruction set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_here import ISAS, native

from topcoat.kernels.centre_search import best_centres, best_centres_reference
from topcoat.quant.normal_float import NORMAL_FLOAT

FACTORS = sorted(torch.linspace(-0.054, 0.054, 41).tolist(), key=abs)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=30, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4]),
    blocks=st.integers(1, 40),
    size=st.sampled_from([32, 64, 256]),
    short=st.integers(0, 31),
    kind=st.sampled_from(["normal", "few values", "zeros", "huge"]),
    seed=st.integers(0, 2**30),
)
def test_it_is_the_definitions(isa, bits, blocks, size, short, kind, seed):
    values = torch.randn(blocks, size, generator=torch.Generator().manual_seed(seed))
    values = {
        "normal": values,
        "few values": values.mul(2).round().div(2),  # many candidates tell as much as one another
        "zeros": values * 0,
        "huge": values * 1e37,
    }[kind]
    median = values.median(-1).values
    reach = (values - median[:, None]).abs().amax(-1)
    asked = values, size - short, median, reach, FACTORS, NORMAL_FLOAT[bits].borders
    with native(isa):
        found = best_centres(*asked)
    assert torch.equal(found, best_centres_reference(*asked))


def test_a_block_of_few_values_is_told_by_the_centre_that_parts_them():
    """Two clusters, of which the nearest levels of 2 bits around 0 see three: one count by hand."""
    values = torch.tensor([[0.1] * 16 + [0.3] * 16])
    median, reach = torch.tensor([0.1]), torch.tensor([0.2])
    borders = NORMAL_FLOAT[2].borders  # -0.626, 0, 0.626
    # around 0 the codes are 2 and 3 (0.1 / 0.3 = 0.33, and 1), 16 of each: as much as two values can tell
    assert float(best_centres(values, 32, median, reach, FACTORS, borders)) == 0
