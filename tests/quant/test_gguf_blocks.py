"""gguf as a format: what it writes is what the gguf library writes, and what it cannot do it says."""

import gguf
import pytest
import torch

from topcoat.errors import TopcoatError
from topcoat.kernels.gguf_dequant import BLOCK_TYPES
from topcoat.quant.base import QuantizedWeight
from topcoat.quant.gguf_blocks import PIECE, GgufBlocks, stored_blocks
from topcoat.quant.settings import GgufConfig

WRITTEN = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


@pytest.mark.parametrize("type", WRITTEN)
def test_the_blocks_are_those_of_the_gguf_library(type):
    weight = torch.randn(PIECE // 1024 + 3, 1024, generator=torch.Generator().manual_seed(0)).bfloat16()
    blocks = GgufBlocks(GgufConfig(type=type)).quantize(weight).tensors["blocks"]
    theirs = gguf.quants.quantize(weight.float().numpy(), gguf.GGMLQuantizationType[type])
    assert torch.equal(blocks, torch.from_numpy(theirs))


@pytest.mark.parametrize(
    ("type", "mae", "rmse"), [("Q4_0", 0.07176, 0.08593), ("Q4_1", 0.06473, 0.07820), ("Q8_0", 0.00449, 0.00535)]
)
def test_the_error_on_normal_weights_is_the_published_one(type, mae, rmse):
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(1))
    format = GgufBlocks(GgufConfig(type=type))
    error = format.dequantize(format.quantize(weight), torch.float32) - weight
    assert error.abs().mean() == pytest.approx(mae, rel=5e-3)
    assert error.square().mean().sqrt() == pytest.approx(rmse, rel=5e-3)


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_k_types_read_back_as_stored(kind):
    blocks = torch.randint(0, 100, (3, BLOCK_TYPES[kind].bytes * 2), dtype=torch.uint8)
    format = GgufBlocks(GgufConfig())
    q = stored_blocks(blocks, BLOCK_TYPES[kind], (3, 512))
    theirs = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind])
    assert torch.equal(format.dequantize(q, torch.float32), torch.from_numpy(theirs))
    assert q.nbytes == blocks.numel()


def test_plain_floats_of_a_file_stay_as_they_are():
    weight = torch.randn(4, 33).half()
    q = QuantizedWeight("gguf", (4, 33), {"weight": weight})
    assert torch.equal(GgufBlocks(GgufConfig()).dequantize(q, torch.float32), weight.float())


def test_weights_of_no_gguf_file_are_refused_with_the_way_out():
    with pytest.raises(TopcoatError, match="keeps the blocks of a GGUF file") as caught:
        GgufBlocks(GgufConfig()).quantize(torch.zeros(2, 32))
    assert "type: Q4_0" in caught.value.problems[0].fix


def test_rows_that_are_not_whole_blocks_are_refused():
    with pytest.raises(TopcoatError, match="blocks of 32 weights, which do not divide rows of 33"):
        GgufBlocks(GgufConfig(type="Q8_0")).check_shape(2, 33)


def test_bytes_that_only_the_file_knows_are_not_guessed():
    with pytest.raises(TopcoatError, match="keeps the blocks of a GGUF file, and only such a file says") as caught:
        GgufBlocks(GgufConfig()).nbytes(2, 32)
    assert "quantization: {format: gguf, type: Q4_0}" in str(caught.value)


def test_weights_too_large_for_fp16_scales_are_refused():
    with pytest.raises(TopcoatError, match="too large for Q4_0, whose scales are fp16"):
        GgufBlocks(GgufConfig(type="Q4_0")).quantize(torch.full((2, 32), 1e9))
