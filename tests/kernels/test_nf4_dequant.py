"""Every way of rebuilding NF4 weights gives the bits of the definition."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_here import ISAS, WAYS, native

from topcoat.kernels import nf4_dequant
from topcoat.kernels.code_sizes import packed_bytes
from topcoat.kernels.nf4_dequant import (
    PIECE,
    bits_of,
    bitsandbytes_can,
    dequantize_nf4,
    dequantize_nf4_bitsandbytes,
    dequantize_nf4_native,
    dequantize_nf4_reference,
    dequantize_nf4_table,
    nested_scales,
)
from topcoat.quant.double import dynamic_map, quantize_scales
from topcoat.quant.normal_float import NF2_TABLE, NF3_TABLE

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def stored(shape, block_size, seed=0, magnitude=1.0, device=CPU):
    """Random codes and scales (some zero, some negative as double quantization can leave them)."""
    generator = torch.Generator().manual_seed(seed)
    count = shape[0] * shape[1]
    packed = torch.randint(0, 256, ((count + 1) // 2,), generator=generator, dtype=torch.uint8)
    absmax = torch.randn(-(-count // block_size), generator=generator) * magnitude
    absmax[::7] = 0
    return packed.to(device), absmax.to(device)


def fast_ways(packed, block_size, out):
    yield dequantize_nf4_table
    yield dequantize_nf4
    if bitsandbytes_can(packed, block_size, out):
        yield dequantize_nf4_bitsandbytes
    if out.is_cpu and out.dtype != torch.float16:
        yield from map(natively, ISAS)


def natively(isa):
    """The compiled way of one instruction set; fails the test where it would not take its input."""

    def way(packed, absmax, block_size, out, nested=None):
        with native(isa):
            assert dequantize_nf4_native(packed, absmax, block_size, out, nested)
        return out

    way.__name__ = isa
    return way


def bits(values):
    """The bytes of `values`; AVX512-BF16 converts numbers below the normal range of bf16 (1.2e-38) to zero."""
    if values.dtype == torch.bfloat16:
        values = torch.where(values.abs() < torch.finfo(torch.bfloat16).tiny, values * 0, values)
    return values.view(torch.uint8)


def assert_same_bits(packed, absmax, block_size, shape, dtype):
    out = torch.empty(shape, dtype=dtype, device=packed.device)
    expected = dequantize_nf4_reference(packed, absmax, block_size, out.clone())
    for way in fast_ways(packed, block_size, out):
        out.fill_(torch.nan)
        assert way(packed, absmax, block_size, out) is out
        assert torch.equal(bits(out), bits(expected)), way.__name__


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 300),
    block_size=st.sampled_from([32, 64, 128, 256, 512, 1024, 2048, 4096]),
    dtype=st.sampled_from(DTYPES),
    magnitude=st.sampled_from([1.0, 1e-6, 1e-40, 1e37]),
    seed=st.integers(0, 2**31),
)
def test_every_way_gives_the_same_bits(rows, columns, block_size, dtype, magnitude, seed):
    packed, absmax = stored((rows, columns), block_size, seed, magnitude)
    assert_same_bits(packed, absmax, block_size, (rows, columns), dtype)


@pytest.mark.parametrize("shape", [(2, PIECE), (3, PIECE // 2 + 1), (1, 2 * PIECE + 63), (513, 511)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces_join_without_a_seam(shape, dtype):
    packed, absmax = stored(shape, 64)
    assert_same_bits(packed, absmax, 64, shape, dtype)


@pytest.mark.parametrize("shape", [(4, 96), (3, 48), (16, 80), (64, 576)])
@pytest.mark.parametrize("block_size", [64, 128])
def test_blocks_that_cross_rows_get_their_own_scale(shape, block_size):
    """bitsandbytes' CPU op gets these wrong when it is given (O, I)."""
    packed, absmax = stored(shape, block_size)
    assert_same_bits(packed, absmax, block_size, shape, torch.float32)


@pytest.mark.parametrize("way", WAYS)
def test_float64_and_strided_outputs_are_filled_too(way):
    packed, absmax = stored((8, 64), 64)
    expected = dequantize_nf4_reference(packed, absmax, 64, torch.empty(8, 64))
    wide, double = torch.zeros(8, 128), torch.empty(8, 64, dtype=torch.float64)
    with native(way):
        assert torch.equal(dequantize_nf4(packed, absmax, 64, double), expected.double())
        assert torch.equal(dequantize_nf4(packed, absmax, 64, wide[:, :64]), expected)
    assert wide[:, 64:].eq(0).all()


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 700),
    gap=st.sampled_from([0, 3]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_nested_scales_are_read_as_the_definition_reads_them(way, rows, columns, gap, dtype, seed):
    packed, absmax = stored((rows, columns), 32, seed)
    scales = quantize_scales(absmax.abs())
    nested = scales["nested_absmax"], scales["offset"], dynamic_map(CPU)
    expected = torch.empty(rows, columns, dtype=dtype)
    dequantize_nf4_reference(packed, nested_scales(scales["absmax"], nested), 32, expected)
    out = torch.zeros(rows, columns + gap, dtype=dtype)
    with native(way):
        dequantize_nf4(packed, scales["absmax"], 32, out[:, :columns], nested)
    assert torch.equal(bits(out[:, :columns]), bits(expected))
    assert out[:, columns:].eq(0).all()


@pytest.mark.parametrize("isa", ISAS)
def test_too_few_codes_or_scales_are_never_read_past_their_end(isa):
    packed, absmax = stored((8, 64), 64)
    nested = torch.ones(1), torch.zeros(()), dynamic_map(CPU)
    out = torch.empty(8, 64)
    with native(isa):
        assert not dequantize_nf4_native(packed[:-1], absmax, 64, out)
        assert not dequantize_nf4_native(packed, absmax[:-1], 64, out)
        assert not dequantize_nf4_native(packed, absmax, 64, out, nested)  # float scales are no codes
        assert not dequantize_nf4_native(packed, packed[:8], 64, out, (*nested[:2], nested[2][:255]))
        assert dequantize_nf4_native(packed, packed[:8], 64, out, nested)


def test_without_bitsandbytes_the_table_serves(monkeypatch):
    monkeypatch.setattr(nf4_dequant, "_bitsandbytes_kernel", lambda device_type: False)
    packed, absmax = stored((8, 64), 64)
    assert not bitsandbytes_can(packed, 64, torch.empty(8, 64))
    with native("off"):
        assert_same_bits(packed, absmax, 64, (8, 64), torch.bfloat16)


def test_blocks_that_bitsandbytes_would_compile_for_go_the_plain_way():
    out = torch.empty(1, 4096)
    assert not bitsandbytes_can(torch.empty(2048, dtype=torch.uint8), 2048, out)


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_importing_needs_neither_bitsandbytes_nor_its_time():
    run("import sys, topcoat.quant.linear; assert 'bitsandbytes' not in sys.modules")


def test_bitsandbytes_comes_in_without_the_hub_and_without_a_word():
    pytest.importorskip("bitsandbytes")
    done = run(
        "import sys, types\n"
        "kernels = types.ModuleType('kernels')\n"
        "def get_kernel(*args, **kwargs): raise SystemExit('asked the hub')\n"
        "kernels.get_kernel = get_kernel\n"
        "sys.modules['kernels'] = kernels\n"
        "from topcoat.kernels.nf4_dequant import _bitsandbytes_kernel\n"
        "_bitsandbytes_kernel('cpu')\n"
        "assert 'bitsandbytes' in sys.modules and sys.modules['kernels'] is kernels\n"
    )
    assert done.stderr == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 64), (4, 96), (7, 33), (513, 511)])
def test_a_gpu_gives_the_same_bits(dtype, shape):
    packed, absmax = stored(shape, 64, device=torch.device("cuda"))
    assert_same_bits(packed, absmax, 64, shape, dtype)
    on_cpu = dequantize_nf4_reference(packed.cpu(), absmax.cpu(), 64, torch.empty(shape, dtype=dtype))
    out = torch.empty(shape, dtype=dtype, device="cuda")
    assert torch.equal(dequantize_nf4(packed, absmax, 64, out).cpu(), on_cpu)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("levels", [NF3_TABLE, NF2_TABLE], ids=["3 bits", "2 bits"])
@pytest.mark.parametrize("shape", [(4, 96), (5, 37), (1, 1), (3, 130), (16, 1056)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_of_fewer_bits_are_read_as_the_definition_reads_them(isa, levels, shape, dtype):
    """Rows that begin inside a byte, and apart in memory; nested scales."""
    count, generator = shape[0] * shape[1], torch.Generator().manual_seed(2)
    packed = torch.randint(0, 256, (packed_bytes(count, bits_of(levels)),), generator=generator, dtype=torch.uint8)
    scales = quantize_scales(torch.rand(-(-count // 32), generator=generator))
    nested = scales["nested_absmax"], scales["offset"], dynamic_map(CPU)
    absmax = nested_scales(scales["absmax"], nested)
    expected = dequantize_nf4_reference(packed, absmax, 32, torch.empty(shape, dtype=dtype), levels)
    out = torch.full((shape[0], shape[1] + 5), torch.nan, dtype=dtype)
    with native(isa):
        assert dequantize_nf4_native(packed, scales["absmax"], 32, out[:, :-5], nested, levels)
    assert torch.equal(bits(out[:, :-5].contiguous()), bits(expected))
    assert out[:, -5:].isnan().all()
