"""What every number format promises. A format is covered from the moment it is listed in FORMATS."""

import pytest
import torch
from safetensors.torch import load, save
from torch.nn import functional as F

from topcoat.errors import TopcoatError
from topcoat.quant.base import QuantizedWeight
from topcoat.quant.formats import FORMATS, make_format
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import (
    DenseConfig,
    Fp4Config,
    GgufConfig,
    GptqConfig,
    Int8Config,
    IntConfig,
    LevelsConfig,
    Nf4Config,
    NormalFloatConfig,
    NormalFloatIcqConfig,
)

CONFIGS = [
    DenseConfig(format="bf16"),
    DenseConfig(format="fp16"),
    DenseConfig(format="fp32"),
    Nf4Config(),
    Nf4Config(double_quant=False),
    Nf4Config(block_size=256),
    NormalFloatConfig(format="nf3"),
    NormalFloatConfig(format="nf3", block_size=32, double_quant=False),
    NormalFloatConfig(format="nf2"),
    NormalFloatIcqConfig(search_points=5),
    NormalFloatIcqConfig(format="nf3-icq", search_points=5),
    NormalFloatIcqConfig(format="nf2-icq", search_points=5),
    NormalFloatIcqConfig(search_points=5, block_size=256, double_quant=False),
    Fp4Config(),
    Fp4Config(double_quant=False),
    Int8Config(),
    IntConfig(format="int4"),
    IntConfig(format="int4", group_size=16, scale_dtype="fp32"),
    IntConfig(format="int3"),
    IntConfig(format="int3", scale_dtype="fp32"),
    IntConfig(format="int4", rounding="hqq"),
    IntConfig(format="int2", rounding="hqq"),
    IntConfig(format="int4", rounding="icq"),
    IntConfig(format="int2"),
    IntConfig(format="int2", scale_dtype="fp32"),
    GgufConfig(type="Q4_0"),
    GgufConfig(type="Q4_1"),
    GgufConfig(type="Q5_0"),
    GgufConfig(type="Q5_1"),
    GgufConfig(type="Q8_0"),
    GptqConfig(group_size=32),
    GptqConfig(bits=3, group_size=-1),
    GptqConfig(bits=2, group_size=16),
    GptqConfig(bits=8, group_size=32),
]
SHAPES = [(24, 64), (7, 33), (1, 1), (5, 130), (64, 1), (3, 1056)]
# Largest error of one weight, relative to the largest weight of its block or row: half the widest gap between codes.
# NF4's widest gap is 0.304, NF3's 0.521, NF2's 0.747, FP4's a third; double quantization may scale the block by another
# percent, or by more where the block is far smaller than its 256 neighbours, which normal weights are not. The range of
# a group is at most twice its largest weight, and fp16 scales move a level by another hundredth of a step.
TOLERANCE = {
    "bf16": 2**-8,
    "fp16": 2**-11,
    "fp32": 0.0,
    "nf4": 0.17,
    "nf3": 0.28,
    "nf2": 0.39,
    "nf4-icq": 0.19,
    "nf3-icq": 0.31,
    "nf2-icq": 0.43,
    "fp4": 0.185,
    "int8": 0.5 / 127 * 1.0001,
}
TOLERANCE |= {f"int{bits}": 1.02 / (2**bits - 1) for bits in (2, 3, 4)}


def has_half_scales(format):
    config = format.config
    return isinstance(config, GgufConfig | GptqConfig) or (
        isinstance(config, IntConfig) and config.scale_dtype == "fp16"
    )


def tolerance(config):
    if isinstance(config, GptqConfig):  # half a step of a range of twice the largest weight, and the zero's rounding
        return 2.02 / (2**config.bits - 1)
    if isinstance(config, GgufConfig):  # Q4_0 and Q5_0 end one step short of their largest weight, mirrored
        return {"Q4_0": 0.126, "Q4_1": 0.068, "Q5_0": 0.0627, "Q5_1": 0.033, "Q8_0": 0.0045}[config.type]
    if isinstance(config, IntConfig) and config.rounding != "nearest":  # they give up large weights for the rest
        return 2.2 * TOLERANCE[config.format] if config.rounding == "hqq" else TOLERANCE[config.format] + 0.2
    return TOLERANCE[config.format]


@pytest.fixture(params=CONFIGS, ids=str)
def format(request):
    return make_format(request.param)


@pytest.fixture(params=SHAPES, ids=str)
def weight(request, format):
    rows, columns = request.param
    if refusal(lambda: format.check_shape(rows, columns)):
        columns = -(-columns // 32) * 32  # whole groups and blocks; what is refused has its own test below
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))


def test_the_configs_here_cover_the_table():
    assert {config.format for config in CONFIGS} == set(FORMATS)


def test_a_weight_comes_back_within_its_tolerance(format, weight):
    back = format.dequantize(format.quantize(weight), torch.float32)
    assert back.shape == weight.shape
    assert (back - weight).abs().max() <= tolerance(format.config) * weight.abs().max()


def test_quantizing_twice_is_quantizing_once(format, weight):
    once = format.quantize(weight)
    twice = format.quantize(format.dequantize(once, torch.float32))
    if "icq" in (format.config.format[4:], getattr(format.config, "rounding", None)) or (
        format.config.format == "gptq" and format.config.bits == 8
    ):
        # what tells the most about rounded weights is found anew, and may be another scale or centre; 255 steps of a
        # scale rounded to float16 may end a code short of the range
        a, b = format.dequantize(once, torch.float32), format.dequantize(twice, torch.float32)
        assert (b - a).abs().max() <= tolerance(format.config) * a.abs().max()
        return
    for name in ("weight", "codes"):  # no code moves, but between the two zeros of fp4
        if name in once.tensors and format.config.format != "fp4":
            assert torch.equal(twice.tensors[name], once.tensors[name])
    # scales are multiplied and divided once more, and double quantization rounds them once more
    spread = 0.02 if "offset" in once.tensors else 2**-22
    a, b = format.dequantize(once, torch.float32), format.dequantize(twice, torch.float32)
    nearly = (
        2**-20 * float(a.abs().max()) if isinstance(format.config, IntConfig | GgufConfig | GptqConfig) else 0
    )  # scale * code + low cancels
    torch.testing.assert_close(b, a, rtol=spread, atol=nearly)


def test_it_takes_the_bytes_it_says_it_takes(format, weight):
    q = format.quantize(weight)
    assert format.nbytes(*weight.shape) == q.nbytes == sum(t.untyped_storage().nbytes() for t in q.tensors.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_is_the_float32_value_rounded_once(format, weight, dtype):
    q = format.quantize(weight)
    assert torch.equal(format.dequantize(q, dtype), format.dequantize(q, torch.float32).to(dtype))


def test_it_writes_into_a_given_tensor(format, weight):
    q = format.quantize(weight)
    out = torch.full(weight.shape, torch.nan)
    assert format.dequantize(q, torch.float32, out=out) is out
    assert torch.equal(out, format.dequantize(q, torch.float32))


def test_a_given_tensor_of_another_form_is_refused(format, weight):
    with pytest.raises(ValueError, match="out is"):
        format.dequantize(format.quantize(weight), torch.float32, out=torch.empty(3, 3))


def test_a_dequantized_weight_may_be_written_to(format, weight):
    q = format.quantize(weight)
    before = {name: tensor.clone() for name, tensor in q.tensors.items()}
    format.dequantize(q, next(iter(q.tensors.values())).dtype if "weight" in q.tensors else torch.float32).zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in q.tensors.items())


def test_a_state_survives_a_safetensors_file(format, weight):
    q = format.quantize(weight)
    again = QuantizedWeight(q.format, q.shape, load(save(q.tensors)), q.scalars)
    assert torch.equal(format.dequantize(again, torch.float32), format.dequantize(q, torch.float32))


def test_the_source_dtype_changes_nothing_but_its_own_rounding(format):
    weight = torch.randn(8, 64).bfloat16()
    a, b = format.quantize(weight), format.quantize(weight.float())
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in b.tensors)


def test_a_matrix_of_zeros_stays_zero(format):
    back = format.dequantize(format.quantize(torch.zeros(6, 96)), torch.float32)
    assert torch.equal(back, torch.zeros(6, 96))


def test_a_zero_row_or_block_beside_others_stays_zero(format):
    weight = torch.randn(8, 256)
    weight[3] = 0
    back = format.dequantize(format.quantize(weight), torch.float32)[3]
    if isinstance(format.config, LevelsConfig) and format.config.bits == 2:  # no level is zero, and scales are rounded
        assert back.abs().max() < 0.01
    else:
        assert torch.equal(back, torch.zeros(256))


@pytest.mark.parametrize("magnitude", [1e-40, 1e-30, 1e30])
def test_magnitudes_far_from_one_keep_their_shape(format, magnitude):
    if format.config.format == "fp16" or has_half_scales(format):
        pytest.skip("fp16 ends at 6e4 and 6e-8")
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * magnitude
    back = format.dequantize(format.quantize(weight), torch.float32)
    assert torch.isfinite(back).all()
    if magnitude > 1e-38:  # below, scales are floored and subnormal numbers have few bits
        assert (back - weight).abs().max() <= tolerance(format.config) * weight.abs().max()


def test_values_that_are_not_finite_are_counted(format):
    weight = torch.randn(4, 64)
    weight[0, 0], weight[1, 2], weight[3, 3] = torch.nan, torch.inf, -torch.inf
    with pytest.raises(TopcoatError, match="3 of 256 weights are not finite: 1 NaN, 2 infinite") as caught:
        format.quantize(weight)
    assert "damaged" in caught.value.problems[0].fix


@pytest.mark.parametrize("weight", [torch.randn(4), torch.randn(2, 2, 2), torch.ones(2, 2, dtype=torch.int32)])
def test_what_is_no_float_matrix_is_named(format, weight):
    with pytest.raises(TopcoatError, match="must be a float matrix") as caught:
        format.quantize(weight)
    assert str(weight.dtype) in str(caught.value)


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradients_equal_those_of_a_dense_copy(format, compute_dtype):
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(24, 64, generator=generator), torch.randn(24, generator=generator)
    layer = FrozenLinear.from_dense(weight, bias, format.config, compute_dtype)
    dense = layer.dense_weight(compute_dtype)
    x = torch.randn(2, 5, 64, generator=generator).to(compute_dtype)
    grad = torch.randn(2, 5, 24, generator=generator).to(compute_dtype)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = layer(ours), F.linear(theirs, dense, bias.to(compute_dtype))
    y.backward(grad)
    expected.backward(grad)
    assert torch.equal(y, expected)  # the same product of the same numbers: bit for bit
    assert torch.equal(ours.grad, theirs.grad)


def refusal(ask):
    """The TopcoatError of `ask()`, or None."""
    try:
        ask()
    except TopcoatError as error:
        return error
    return None


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_shape_that_does_not_fit_is_refused_from_the_shape_alone(format, shape):
    refused = refusal(lambda: format.check_shape(*shape))
    assert str(refusal(lambda: format.quantize(torch.zeros(shape)))) == str(refused)
    assert str(refusal(lambda: format.nbytes(*shape))) == str(refused)
    assert refused is None or refused.problems[0].where.startswith("model.quantization")
