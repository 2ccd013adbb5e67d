"""nf4 against bitsandbytes' CPU code, byte for byte, and against the published numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topcoat.errors import TopcoatError
from topcoat.kernels.nf4_dequant import NF4_TABLE
from topcoat.kernels.packed_codes import unpack_flat
from topcoat.quant.levels import PIECE
from topcoat.quant.normal_float import NORMAL_FLOAT, Nf4, NormalFloat
from topcoat.quant.settings import Nf4Config, NormalFloatConfig

# MAE and RMSE on N(0, 1); the MAE by block size are the means bitsandbytes' own tests use.
MAE = {32: 0.067746, 64: 0.072798, 128: 0.076831, 256: 0.080337, 512: 0.083547, 1024: 0.086610, 4096: 0.092547}


@pytest.fixture
def bnb():
    return pytest.importorskip("bitsandbytes.functional")


def same_bytes(bnb, weight, block_size, double_quant):
    codes, state = bnb.quantize_4bit(weight, blocksize=block_size, quant_type="nf4", compress_statistics=double_quant)
    ours = Nf4(Nf4Config(block_size=block_size, double_quant=double_quant)).quantize(weight).tensors
    pairs = [(ours["codes"], codes.flatten()), (ours["absmax"], state.absmax)]
    if double_quant:
        pairs += [(ours["nested_absmax"], state.state2.absmax), (ours["offset"], state.offset)]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


@settings(max_examples=120, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 200),
    block_size=st.sampled_from([32, 64, 128, 256, 512, 1024, 2048, 4096]),
    double_quant=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    magnitude=st.sampled_from([1.0, 1e-3, 1e-7, 1e-30, 1e-39, 1e4, 1e30]),
    outliers=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_bytes_are_those_of_bitsandbytes(rows, columns, block_size, double_quant, dtype, magnitude, outliers, seed):
    bnb = pytest.importorskip("bitsandbytes.functional")
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    if outliers:  # blocks of zeros, and single weights far above their neighbours
        weight[torch.rand(rows, generator=generator) < 0.3] = 0
        weight[torch.rand(rows, columns, generator=generator) < 0.01] *= 100
    weight = (weight * magnitude).clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
    assert same_bytes(bnb, weight, block_size, double_quant)


@pytest.mark.parametrize("double_quant", [False, True])
def test_the_bytes_are_those_of_bitsandbytes_across_pieces(bnb, double_quant):
    weight = torch.randn(3, PIECE // 2 + 77, generator=torch.Generator().manual_seed(0))
    assert same_bytes(bnb, weight, 64, double_quant)


def test_weights_that_rounding_alone_decides_follow_bitsandbytes(bnb):
    """Whole blocks code w * (1 / absmax), the short last one w / absmax: some weights fall between the two."""
    table = torch.tensor(NF4_TABLE)
    borders = (table[:-1] + table[1:]) / 2
    scales = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    near = scales * borders  # (20000, 15), within an ulp of a border
    product, quotient = near * (1.0 / scales), near / scales
    undecided = (torch.bucketize(product, borders) != torch.bucketize(quotient, borders)).any(1)
    assert undecided.sum() > 100
    blocks = torch.cat((scales, near, torch.zeros(20_000, 16)), dim=1)[undecided]  # (blocks, 32)
    assert same_bytes(bnb, blocks, 32, double_quant=False)
    for block in blocks[:50]:  # and as the short last block
        assert same_bytes(bnb, block[None, :17], 32, double_quant=False)


def test_the_golden_vector():
    weight = ((torch.arange(64) - 32) / 32).view(1, 64)
    q = Nf4(Nf4Config(double_quant=False)).quantize(weight)
    assert (
        bytes(q.tensors["codes"].tolist()).hex() == "000001111111122222333344455566677788999aaabbbccccddddeeeeeeeffff"
    )
    error = Nf4(Nf4Config(double_quant=False)).dequantize(q, torch.float32) - weight
    assert q.tensors["absmax"].tolist() == [1.0]
    assert error.abs().mean() == pytest.approx(0.041134, abs=5e-7)
    assert error.square().mean().sqrt() == pytest.approx(0.053684, abs=5e-7)


def test_the_table_is_the_quantiles_of_a_normal_distribution():
    offset = 0.9677083  # 1 - (1/32 + 1/30)/2, cut where the source cuts it
    quantile = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0).icdf
    positive = quantile(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -quantile(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat((positive, negative, torch.zeros(1, dtype=torch.float64))).sort().values
    torch.testing.assert_close(levels / levels.max(), torch.tensor(NF4_TABLE, dtype=torch.float64), rtol=0, atol=1.2e-7)


def test_a_block_of_zeros_gets_the_code_of_zero():
    q = Nf4(Nf4Config(double_quant=False)).quantize(torch.zeros(2, 65))
    assert set(unpack_flat(q.tensors["codes"], 130).tolist()) == {7}


@pytest.mark.parametrize("block_size", MAE)
def test_the_error_on_normal_weights_is_the_published_one(block_size):
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(block_size))
    format = Nf4(Nf4Config(block_size=block_size, double_quant=False))
    error = format.dequantize(format.quantize(weight), torch.float32) - weight
    assert error.abs().mean() == pytest.approx(MAE[block_size], abs=7 * 7.4e-5)
    if block_size == 64:
        assert error.square().mean().sqrt() == pytest.approx(0.09195, abs=1e-4)


def test_double_quantization_costs_what_the_table_says():
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(5))
    plain, double = Nf4(Nf4Config(double_quant=False)), Nf4(Nf4Config())
    errors = [format.dequantize(format.quantize(weight), torch.float32) - weight for format in (plain, double)]
    mae, rmse = [e.abs().mean() for e in errors], [e.square().mean().sqrt() for e in errors]
    assert mae[1] - mae[0] == pytest.approx(0.07284 - 0.07276, abs=2e-5)
    assert rmse[1] - rmse[0] == pytest.approx(0.09197 - 0.09195, abs=2e-5)


def test_a_weight_takes_four_and_an_eighth_bits():
    count = 4096 * 4096
    assert 8 * Nf4(Nf4Config()).nbytes(4096, 4096) / count == pytest.approx(4.126953125, abs=1e-5)
    assert 8 * Nf4(Nf4Config(double_quant=False)).nbytes(4096, 4096) / count == 4.5
    # the frozen linears of SmolLM2-135M: 30 layers, hidden 576, key-value 192, feed-forward 1536
    shapes = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
    assert 30 * sum(Nf4(Nf4Config()).nbytes(*shape) for shape in shapes) == pytest.approx(54.8e6, rel=1e-3)


def test_scales_too_large_to_average_are_refused_with_advice():
    with pytest.raises(TopcoatError, match="too large for double quantization") as caught:
        Nf4(Nf4Config()).quantize(torch.full((8, 64), 3e38))
    assert "double_quant: false" in caught.value.problems[0].fix
    assert Nf4(Nf4Config(double_quant=False)).quantize(torch.full((8, 64), 3e38)).tensors["absmax"].max() == 3e38


@pytest.mark.parametrize(("bits", "mae", "rmse"), [(3, 0.15988, 0.20153), (2, 0.38411, 0.45877)])
def test_the_error_of_fewer_levels_is_the_measured_one(bits, mae, rmse):
    """IR-QLoRA's tables of 8 and 4 levels, on normal weights in blocks of 64."""
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(bits))
    format = NormalFloat(NormalFloatConfig(format=f"nf{bits}", double_quant=False))
    error = format.dequantize(format.quantize(weight), torch.float32) - weight
    assert error.abs().mean() == pytest.approx(mae, abs=1e-3)
    assert error.square().mean().sqrt() == pytest.approx(rmse, abs=2e-3)


@pytest.mark.parametrize("bits", [3, 2])
@pytest.mark.parametrize("shape", [(4, 96), (5, 37), (1, 1), (3, 130)])
def test_fewer_levels_are_the_nearest_of_their_table_and_back_again(bits, shape):
    """By a plain loop, short last blocks and codes that end inside a byte among them."""
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(bits))
    format = NormalFloat(NormalFloatConfig(format=f"nf{bits}", block_size=32, double_quant=False))
    q, table, flat = format.quantize(weight), NORMAL_FLOAT[bits].values, weight.flatten().tolist()
    wanted = []
    for start in range(0, len(flat), 32):
        largest = max(map(abs, flat[start : start + 32]))
        wanted += [min(table, key=lambda level: abs(level - w / largest)) * largest for w in flat[start : start + 32]]
    torch.testing.assert_close(format.dequantize(q, torch.float32).flatten(), torch.tensor(wanted))
    assert q.tensors["codes"].numel() == {3: 3 * -(-len(flat) // 8), 2: -(-len(flat) // 4)}[bits]
