"""Our safetensors writer, held to the library's reader."""

import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from topcoat.training.tensor_file import DTYPES, on_host, pieces


@given(
    dtypes=st.lists(st.sampled_from(list(DTYPES)), min_size=1, max_size=6),
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=6, max_size=6),
    transposed=st.booleans(),
)
def test_the_library_reads_every_type_and_shape_that_is_written(dtypes, shapes, transposed):
    generator = torch.Generator().manual_seed(0)
    made = {}
    for index, dtype in enumerate(dtypes):
        values = torch.randint(0, 2, shapes[index], generator=generator).to(dtype)
        made[f"layers.{index}.wéight"] = values.T if transposed and values.dim() == 2 else values
    read = safetensors.torch.load(b"".join(pieces(on_host(made))))
    assert read.keys() == made.keys()
    for name, tensor in made.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].float(), tensor.float())
