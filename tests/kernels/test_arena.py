"""An arena lends one buffer a name, in whatever shape is asked, and makes a new one only for a larger request."""

import torch

from topcoat.kernels.arena import Arena
from topcoat.kernels.moves import moves


def test_a_name_is_one_buffer_in_every_shape_that_fits_it():
    arena = Arena(torch.device("cpu"))
    wide = arena.take("x", (6, 4), torch.float32)
    begin = wide.data_ptr()
    for shape in ((6, 4), (4, 6), (24,), (2, 3), (6, 4)):
        view = arena.take("x", shape, torch.float32)
        assert (view.data_ptr(), tuple(view.shape)) == (begin, shape)
        assert view.is_contiguous()
    assert arena.nbytes() == wide.nbytes


def test_a_larger_request_grows_the_buffer_and_no_view_of_the_old_one_is_lent_again():
    arena = Arena(torch.device("cpu"))
    old = arena.take("x", (2, 2), torch.float32)
    before = moves()
    arena.take("x", (100,), torch.float32)
    assert moves() == before + 1  # a graph that has captured the old one can tell
    new = arena.take("x", (2, 2), torch.float32)
    assert moves() == before + 1
    assert new.data_ptr() != old.data_ptr()
    assert arena.nbytes() == 400


def test_names_and_dtypes_do_not_share():
    arena = Arena(torch.device("cpu"))
    one = arena.take("x", (3,), torch.float32).fill_(1)
    arena.take("y", (3,), torch.float32).fill_(2)
    arena.take("x", (3,), torch.bfloat16).fill_(3)
    assert one.tolist() == [1, 1, 1]


def test_a_view_first_taken_in_inference_mode_can_be_written_outside_it():
    arena = Arena(torch.device("cpu"))
    with torch.inference_mode():
        arena.take("x", (3,), torch.float32)
    arena.take("x", (3,), torch.float32).fill_(1)
    with torch.inference_mode():
        arena.take("x", (2,), torch.float32)
    arena.take("x", (2,), torch.float32).fill_(1)
