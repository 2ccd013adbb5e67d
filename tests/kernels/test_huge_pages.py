"""Memory on huge pages is memory like any other, and tensors of one slab do not touch."""

import sys
import weakref
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from topcoat.kernels import huge_pages
from topcoat.kernels.huge_pages import HUGE, LINE, SLAB, VARIABLE, Slabs, empty_huge

CPU = torch.device("cpu")


@given(
    sizes=st.lists(
        st.tuples(st.integers(0, 3 * SLAB // 8), st.sampled_from([torch.bfloat16, torch.float32, torch.uint8])),
        max_size=6,
    )
)
def test_tensors_of_a_slab_begin_on_a_cache_line_and_do_not_overlap(sizes):
    slabs = Slabs(CPU)
    tensors = [slabs.empty(size, dtype) for size, dtype in sizes]
    assert [(len(t), t.dtype) for t in tensors] == sizes
    taken = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if t.nbytes)
    assert all(begin % LINE == 0 for begin, _ in taken)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(taken))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked")
@pytest.mark.parametrize(("value", "asks"), [("off", False), ("on", True), (None, True)])
def test_they_can_be_refused(value, asks, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    huge_pages._madvise.cache_clear()
    try:
        assert (huge_pages._madvise() is not None) == asks
        assert len(empty_huge(5, torch.float32, CPU)) == 5
    finally:
        huge_pages._madvise.cache_clear()


def test_small_tensors_share_a_slab_and_a_large_one_has_its_own():
    slabs = Slabs(CPU)
    small = [slabs.empty(1000, torch.float32) for _ in range(8)]
    large = slabs.empty(SLAB, torch.uint8)
    assert len({tensor.untyped_storage().data_ptr() for tensor in small}) == 1
    assert large.untyped_storage().data_ptr() != small[0].untyped_storage().data_ptr()


def test_a_slab_is_given_back_when_nothing_lies_in_it_any_more():
    slabs = Slabs(CPU)
    first = slabs.empty(SLAB // 2, torch.uint8)
    slab = weakref.ref(slabs.newest)
    for _ in range(2):
        kept = slabs.empty(SLAB // 2, torch.uint8)
    storage = weakref.ref(first.untyped_storage())
    assert slab() is None
    del first
    assert storage() is None
    assert kept.nbytes == SLAB // 2


def test_a_tensor_on_huge_pages_can_be_written_from_end_to_end():
    tensor = empty_huge(3 * HUGE + 7, torch.uint8, CPU).fill_(3)
    assert int(tensor.long().sum()) == 3 * (3 * HUGE + 7)


def test_another_device_gets_its_own_memory():
    assert empty_huge(10, torch.float32, torch.device("meta")).device.type == "meta"
    assert Slabs(torch.device("meta")).empty(10, torch.float32).device.type == "meta"
