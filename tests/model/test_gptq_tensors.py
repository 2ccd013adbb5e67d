"""GPTQ checkpoints packed number by number by tests/support/packed_checkpoints.py: the weights they mean, exactly."""

import json

import numpy as np
import pytest
import torch
from packed_checkpoints import gptq_linear, repack, rng
from safetensors.numpy import load_file, save_file

from topcoat.adapters.attach import attach
from topcoat.adapters.settings import LoraConfig
from topcoat.errors import TopcoatError
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import GptqConfig, IntConfig, StoredConfig

VARIANTS = [
    {"bits": 4, "group_size": 32},
    {"bits": 4, "group_size": 32, "act_order": True},
    {"bits": 4, "group_size": -1, "sym": True},
    {"bits": 4, "group_size": 32, "version": 2},
    {"bits": 4, "group_size": 32, "with_g_idx": False},
    {"bits": 8, "group_size": 64},
    {"bits": 3, "group_size": 32},
    {"bits": 2, "group_size": 16, "act_order": True, "version": 2},
]


def facts(bits, group_size, version=1, sym=False, act_order=False, with_g_idx=True):
    kind = "gptq" if version == 1 else "gptq_v2"
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group_size,
        "desc_act": act_order,
        "sym": sym,
        "checkpoint_format": kind,
    }


def load(path, quantization):
    return load_model(ModelSettings(path=str(path), quantization=quantization, compute_dtype="fp32", device="cpu"))


def linears(base):
    return {f"{path}.weight": m for path, m in base.model.named_modules() if isinstance(m, FrozenLinear)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("plain") / "llama", "llama")


def write(plain, out, variant):
    source = rng(3)
    make = lambda rows, columns: gptq_linear(source, rows, columns, **variant)  # noqa: E731
    return repack(plain, out, make, facts(**variant))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("quantization", [StoredConfig(), None], ids=["stored", "dense"])
def test_the_weights_are_those_of_the_definition_in_float64(plain, tmp_path, variant, quantization):
    weights = write(plain, tmp_path / "q", variant)
    found = linears(load(tmp_path / "q", quantization))
    assert set(found) == set(weights)
    for name, weight in weights.items():
        assert torch.equal(found[name].dense_weight(torch.float64), torch.tensor(weight)), name
        assert found[name].format.quantized == (quantization is not None)


def test_the_files_own_format_keeps_the_codes_and_another_does_not(plain, tmp_path):
    write(plain, tmp_path / "q", VARIANTS[0])
    stored = linears(load(tmp_path / "q", StoredConfig()))
    named = linears(load(tmp_path / "q", GptqConfig(bits=4, group_size=32)))
    other = linears(load(tmp_path / "q", {"format": "nf4"}))
    for name, linear in stored.items():
        assert linear.weight_state.format == named[name].weight_state.format == "gptq"
        for key, tensor in linear.weight_state.tensors.items():
            assert torch.equal(named[name].weight_state.tensors[key], tensor)
        assert other[name].weight_state.format == "nf4"


def test_int4_with_fp32_constants_takes_over_the_codes(plain, tmp_path):
    """The base of QA-LoRA: its lowest values are numbers, and float32 holds -zero * scale exactly."""
    weights = write(plain, tmp_path / "q", VARIANTS[0])
    stored = linears(load(tmp_path / "q", StoredConfig()))
    found = linears(load(tmp_path / "q", IntConfig(group_size=32, scale_dtype="fp32")))
    for name, weight in weights.items():
        assert found[name].weight_state.format == "int4"
        assert torch.equal(found[name].weight_state.tensors["codes"], stored[name].weight_state.tensors["codes"])
        assert torch.equal(found[name].dense_weight(torch.float64), torch.tensor(weight))


@pytest.mark.parametrize("variant", [VARIANTS[1], VARIANTS[5]], ids=str)
def test_it_trains(plain, tmp_path, variant):
    write(plain, tmp_path / "q", variant)
    base = load(tmp_path / "q", StoredConfig())
    adapters = attach(base.model, LoraConfig(r=4))
    ids = torch.arange(3, 40)[None]
    before = {n: t.clone() for n, m in linears(base).items() for t in [m.weight_state.tensors["codes"]]}
    optimizer = torch.optim.Adam(adapters.parameters().values(), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = base.model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = linears(base)
    assert all(torch.equal(after[name].weight_state.tensors["codes"], codes) for name, codes in before.items())


def test_biases_of_zeros_that_the_model_does_not_have_are_passed_over(plain, tmp_path):
    write(plain, tmp_path / "q", VARIANTS[0])
    file = tmp_path / "q" / "model.safetensors"
    name = "model.layers.0.self_attn.q_proj.bias"
    save_file(load_file(file) | {name: np.zeros(64, np.float16)}, file)
    load(tmp_path / "q", StoredConfig())
    save_file(load_file(file) | {name: np.ones(64, np.float16)}, file)
    with pytest.raises(TopcoatError, match=r"fit nowhere in LlamaForCausalLM: model.layers.0.self_attn.q_proj.bias"):
        load(tmp_path / "q", StoredConfig())


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"checkpoint_format": "marlin"}, "packed as marlin, and only gptq and gptq_v2"),
        ({"is_marlin_format": True}, "packed as marlin"),
        ({"pack_dtype": "int16"}, "packed in int16, and only int32"),
        ({"bits": 5}, "has 5 bits, and only 2, 3, 4, 8"),
        ({"bits": 8}, "its shapes mean 4 bits, and config.json 8"),
        ({"group_size": 48}, "its group_size is 48"),
        ({"group_size": 16}, "has 4 groups, and rows of 128 weights in groups of 16"),
    ],
)
def test_variants_that_are_not_read_are_refused_by_name(plain, tmp_path, change, what):
    write(plain, tmp_path / "q", VARIANTS[0])
    file = tmp_path / "q" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= change
    file.write_text(json.dumps(config))
    with pytest.raises(TopcoatError, match=what) as caught:
        load(tmp_path / "q", StoredConfig())
    assert "original" in caught.value.problems[0].fix


@pytest.mark.parametrize(
    ("part", "value", "what"),
    [
        ("qzeros", None, "qweight and qzeros are not two matrices"),
        ("scales", None, "scales is not there"),
        ("scales", np.zeros((2, 63), np.float16), r"scales is F16 \[2, 63\], and should be \[2, 64\] of F16"),
        ("g_idx", np.full(64, 9, np.int32), "g_idx names groups outside its 2"),
        ("scales", np.full((2, 64), np.inf, np.float16), "128 scales of groups are not finite"),
    ],
)
def test_parts_that_are_missing_or_of_another_form_are_named(plain, tmp_path, part, value, what):
    write(plain, tmp_path / "q", VARIANTS[0])
    file, name = tmp_path / "q" / "model.safetensors", f"model.layers.1.self_attn.q_proj.{part}"
    tensors = {key: tensor for key, tensor in load_file(file).items() if key != name}
    save_file(tensors if value is None else tensors | {name: value}, file)
    with pytest.raises(TopcoatError, match=what):
        load(tmp_path / "q", StoredConfig())
