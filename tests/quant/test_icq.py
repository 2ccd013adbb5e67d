"""nf4-icq and its kin of fewer bits against a plain loop over candidates, and against nf4, nf3 and nf2."""

import math
from collections import Counter

import pytest
import torch

from topcoat.kernels.packed_codes import unpack_flat
from topcoat.quant.double import dequantize_scales, dynamic_map
from topcoat.quant.fits import entropy
from topcoat.quant.formats import make_format
from topcoat.quant.icq import REACH, NormalFloatIcq, centres_of
from topcoat.quant.normal_float import NORMAL_FLOAT
from topcoat.quant.settings import Nf4Config, NormalFloatConfig, NormalFloatIcqConfig

WEIGHT = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))


def codes_of(block, centre, table):
    left = [w - centre for w in block]
    largest = max(map(abs, left)) or 1.0
    return [min(range(len(table)), key=lambda code: abs(table[code] - w / largest)) for w in left]


def told(block, centre, table):
    counts = Counter(codes_of(block, centre, table)).values()
    return -sum(n / len(block) * math.log2(n / len(block)) for n in counts)


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_the_centre_tells_the_most_of_all_candidates(bits):
    """Candidates by the paper's formula, entropies by counting, on whole blocks and on a short one."""
    for size, block in ((64, WEIGHT[0, :64]), (64, WEIGHT[1, :23])):
        values = torch.zeros(1, size)
        values[0, : len(block)] = block
        levels = NORMAL_FLOAT[bits]
        found = float(centres_of(values, len(block), 10, levels))
        plain = [float(w) for w in block]
        median = sorted(plain)[(len(plain) - 1) // 2]
        reach = max(abs(w - median) for w in plain)
        candidates = [0.0] + [median + reach * REACH * step / 10 for step in range(-10, 11)]
        assert min(abs(found - candidate) for candidate in candidates) < 1e-5
        most = max(told(plain, c, levels.values) for c in candidates)
        assert told(plain, found, levels.values) == pytest.approx(most, abs=0.04)


@pytest.mark.parametrize(("bits", "first", "then"), [(4, 3.684, 3.758), (3, 2.686, 2.745), (2, 1.465, 1.529)])
def test_blocks_tell_more_than_without_a_centre_and_err_no_more(bits, first, then):
    def measure(config):
        format = make_format(config)
        q = format.quantize(WEIGHT)
        codes = unpack_flat(q.tensors["codes"], WEIGHT.numel(), bits).view(-1, 64).float()
        return entropy(codes, bits), (format.dequantize(q, torch.float32) - WEIGHT).square().mean().sqrt()

    plain = Nf4Config() if bits == 4 else NormalFloatConfig(format=f"nf{bits}")
    (before, error), (after, error_after) = measure(plain), measure(NormalFloatIcqConfig(format=f"nf{bits}-icq"))
    assert before.mean() == pytest.approx(first, abs=0.02)
    assert after.mean() == pytest.approx(then, abs=0.02)
    assert error_after < 1.01 * error


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_values_are_those_of_a_plain_loop(bits):
    format = NormalFloatIcq(NormalFloatIcqConfig(format=f"nf{bits}-icq", search_points=3))
    weight = WEIGHT[:3, :200]
    q = format.quantize(weight)
    table, codes = NORMAL_FLOAT[bits].values, unpack_flat(q.tensors["codes"], weight.numel(), bits).tolist()
    absmax = dequantize_scales(*(q.tensors[name] for name in ("absmax", "nested_absmax", "offset"))).tolist()
    map_, scale = dynamic_map(torch.device("cpu")).tolist(), q.tensors["centre_scale"].tolist()
    centre = [map_[code] * scale[i // 256] for i, code in enumerate(q.tensors["centre"].tolist())]
    wanted = [table[code] * absmax[i // 64] + centre[i // 64] for i, code in enumerate(codes)]
    torch.testing.assert_close(format.dequantize(q, torch.float32).flatten(), torch.tensor(wanted))


def test_rows_apart_in_memory_are_filled_too():
    format = NormalFloatIcq(NormalFloatIcqConfig(search_points=1))
    q = format.quantize(WEIGHT)
    wide = torch.zeros(64, 512, dtype=torch.bfloat16)
    format.dequantize(q, torch.bfloat16, out=wide[:, :256])
    assert torch.equal(wide[:, :256], format.dequantize(q, torch.bfloat16))
    assert wide[:, 256:].abs().max() == 0
