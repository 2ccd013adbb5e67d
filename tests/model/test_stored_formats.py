"""What headers alone say of quantized checkpoints is what their readers find."""

import pytest
import torch
from packed_checkpoints import awq_linear, repack, rng
from safetensors.torch import load_file, save_file

from topcoat.errors import TopcoatError
from topcoat.exporting.checkpoint import quantize_checkpoint
from topcoat.model.joined import JoinedTensor
from topcoat.model.safetensors_header import read_folder_header
from topcoat.model.safetensors_source import DirectorySource
from topcoat.model.stored_formats import stored_formats
from topcoat.quant.settings import Fp4Config, GptqConfig, Int8Config, IntConfig, Nf4Config

MIXED = IntConfig(overrides={"*.down_proj": "int8", "*.o_proj": "nf4"})


def same_as_the_reader(folder):
    joined = [tensor for tensor in DirectorySource(folder).tensors() if isinstance(tensor, JoinedTensor)]
    assert joined
    assert stored_formats(read_folder_header(folder)) == {
        tensor.name.removesuffix(".weight"): tensor.form().format for tensor in joined
    }


@pytest.mark.parametrize(
    "config", [Nf4Config(), Fp4Config(), Int8Config(), GptqConfig(group_size=32), IntConfig(), MIXED]
)
def test_of_what_topcoat_writes(tiny_llama, tmp_path, config):
    quantize_checkpoint(DirectorySource(tiny_llama), tmp_path / "q", config)
    same_as_the_reader(tmp_path / "q")


def test_of_awq(tiny_llama, tmp_path):
    draw = rng()
    facts = {"quant_method": "awq", "bits": 4, "group_size": 32}
    repack(tiny_llama, tmp_path / "q", lambda rows, columns: awq_linear(draw, rows, columns, 32), facts)
    same_as_the_reader(tmp_path / "q")


def test_a_description_that_is_none_is_told(tiny_llama, tmp_path):
    quantize_checkpoint(DirectorySource(tiny_llama), tmp_path / "q", IntConfig())
    file = tmp_path / "q" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith(".topcoat"))
    save_file(tensors | {name: torch.tensor(list(b"[1, 2"), dtype=torch.uint8)}, file)
    with pytest.raises(TopcoatError, match=r"\.topcoat cannot be read"):
        stored_formats(read_folder_header(tmp_path / "q"))
