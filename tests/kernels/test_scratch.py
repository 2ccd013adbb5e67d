"""One reused buffer, lent to one reader at a time."""

import threading

import pytest
import torch

from topcoat.kernels.moves import moves
from topcoat.kernels.scratch import release_scratch, scratch, scratch_bytes


def test_a_borrowed_buffer_is_not_lent_twice():
    cpu = torch.device("cpu")
    with scratch((4, 4), torch.float32, cpu) as outer:
        outer.fill_(1)
        with scratch((4, 4), torch.float32, cpu) as inner:
            inner.fill_(2)
        assert outer.eq(1).all()
    with scratch((2, 2), torch.float32, cpu) as again:
        assert again.data_ptr() == outer.data_ptr()


def test_the_buffer_is_free_again_after_an_error():
    cpu = torch.device("cpu")
    release_scratch()
    with pytest.raises(RuntimeError, match="stop"), scratch((3,), torch.float32, cpu):
        raise RuntimeError("stop")
    with scratch((3,), torch.float32, cpu):
        pass
    assert scratch_bytes() == 12


def test_a_shape_that_comes_again_is_the_same_tensor_until_the_buffer_grows():
    cpu = torch.device("cpu")
    release_scratch()
    with scratch((3, 4), torch.float32, cpu) as first:
        pass
    with scratch((3, 4), torch.float32, cpu) as again:
        assert again is first
    with scratch((100,), torch.float32, cpu) as large, scratch((3, 4), torch.float32, cpu) as beside:
        assert beside.data_ptr() != large.data_ptr()
    with scratch((3, 4), torch.float32, cpu) as after:
        assert after is not first
        assert after.data_ptr() == large.data_ptr()


def test_more_shapes_than_are_remembered_are_lent_all_the_same():
    cpu = torch.device("cpu")
    release_scratch()
    for size in (200, *range(1, 150)):
        with scratch((size,), torch.float32, cpu) as buffer:
            assert buffer.shape == (size,)
    assert scratch_bytes() == 800


def test_it_grows_to_the_largest_and_stays():
    cpu = torch.device("cpu")
    release_scratch()
    before = moves()
    for size, moved in ((4, 0), (100, 1), (7, 1)):
        with scratch((size,), torch.float32, cpu) as buffer:
            assert buffer.shape == (size,)
        assert moves() - before == moved  # a graph that has captured the old one can tell
    assert scratch_bytes() == 400
    release_scratch()
    assert moves() - before == 2
    assert scratch_bytes() == 0


def test_threads_have_buffers_of_their_own_since_calls_that_wait_read_them_later():
    cpu, found = torch.device("cpu"), []

    def borrow():
        with scratch((1000,), torch.float32, cpu) as buffer:
            found.append(buffer)

    borrow()
    other = threading.Thread(target=borrow)
    other.start()
    other.join()
    assert found[0].data_ptr() != found[1].data_ptr()
