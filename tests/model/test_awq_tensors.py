"""AWQ checkpoints packed nibble by nibble by tests/support/packed_checkpoints.py: the weights they mean, exactly."""

import json

import pytest
import torch
from packed_checkpoints import awq_linear, repack, rng

from topcoat.errors import TopcoatError
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import IntConfig, StoredConfig

FACTS = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


def load(path, quantization):
    return load_model(ModelSettings(path=str(path), quantization=quantization, compute_dtype="fp32", device="cpu"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder, source = tmp_path_factory.mktemp("awq"), rng(5)
    plain = save_tiny(folder / "plain", "qwen2")
    return folder / "q", repack(plain, folder / "q", lambda o, i: awq_linear(source, o, i, 32), FACTS)


@pytest.mark.parametrize("quantization", [StoredConfig(), None, IntConfig(scale_dtype="fp32")], ids=str)
def test_the_weights_are_those_of_the_definition_in_float64(written, quantization):
    path, weights = written
    found = {f"{p}.weight": m for p, m in load(path, quantization).model.named_modules() if isinstance(m, FrozenLinear)}
    assert set(found) == set(weights)
    for name, weight in weights.items():
        assert torch.equal(found[name].dense_weight(torch.float64), torch.tensor(weight)), name
    formats = {module.weight_state.format for module in found.values()}
    assert formats == {"fp32" if quantization is None else "gptq" if quantization.format == "stored" else "int4"}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"version": "gemv"}, "packed as gemv, and only gemm"),
        ({"backend": "llm-awq"}, "written by llm-awq, and only AutoAWQ's packing"),
        ({"bits": 3}, "has 3 bits, and only 4"),
        ({"zero_point": False}, "has no zero points"),
        ({"group_size": 48}, "its group_size is 48"),
        ({"group_size": 16}, r"qzeros is I32 \[4, 8\], and should be \[8, 8\] of I32"),
    ],
)
def test_variants_that_are_not_read_are_refused_by_name(written, change, what):
    file = written[0] / "config.json"
    before = file.read_text()
    config = json.loads(before)
    config["quantization_config"] |= change
    try:
        file.write_text(json.dumps(config))
        with pytest.raises(TopcoatError, match=what):
            load(written[0], None)
    finally:
        file.write_text(before)
