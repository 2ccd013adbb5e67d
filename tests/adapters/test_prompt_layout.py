"""Where virtual tokens come to stand: one run before every document, the same number of documents in every row."""

import pytest
import torch

from topcoat.adapters.prompt_layout import widen
from topcoat.kernels.documents import documents

IDS = torch.arange(16).view(2, 8)


def spans(*starts):
    ends = [*starts[1:], 16]
    return documents([(start, end - start) for start, end in zip(starts, ends, strict=True)], 16)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"documents": spans(0, 8, 11, 13)}, "4 documents do not lie evenly in 2 rows: 1, 3 in them"),
        ({"documents": spans(0, 3, 8)}, "3 documents do not lie evenly in 2 rows: 2, 1 in them"),
        ({"position_ids": torch.tensor([[0, 1, 0, 1, 0, 1, 2, 3], range(8)])}, "4 documents .* 2 rows: 3, 1 in them"),
    ],
)
def test_rows_that_hold_different_numbers_of_documents_are_refused(given, told):
    with pytest.raises(ValueError, match=told):
        widen(given, IDS, 3)


def test_rows_that_hold_as_many_documents_each_are_widened_alike():
    layout, changes = widen({"documents": spans(0, 3, 8, 13)}, IDS, 3)
    assert (layout.shape, layout.documents) == ((2, 14), 4)
    assert [length for _, length in changes["documents"].spans] == [6, 8, 8, 6]
    assert torch.equal(layout.gather(layout.spread(IDS, torch.zeros(3, dtype=IDS.dtype))), IDS)
