"""Checkpoints that bitsandbytes quantized: the weights transformers computes with, byte for byte."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from topcoat.errors import TopcoatError
from topcoat.exporting.checkpoint import quantize_checkpoint
from topcoat.model.load import load_model
from topcoat.model.safetensors_source import DirectorySource
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import Fp4Config, Int8Config, Nf4Config

CONFIGS = [Nf4Config(), Nf4Config(double_quant=False, block_size=32), Fp4Config(), Int8Config()]


def load(path, quantization):
    return load_model(
        ModelSettings(path=str(path), quantization=quantization, compute_dtype="fp32", device="cpu", attention="eager")
    )


def states(base):
    return {path: m.weight_state for path, m in base.model.named_modules() if isinstance(m, FrozenLinear)}


@pytest.fixture(params=CONFIGS, ids=str)
def config(request):
    return request.param


@pytest.fixture
def written(tmp_path, config):
    """A quantized checkpoint; tests/exporting hold its bytes to bitsandbytes' own."""
    source = save_tiny(tmp_path / "model", "llama")
    quantize_checkpoint(DirectorySource(source), tmp_path / "quantized", config, "fp32")
    return source, tmp_path / "quantized"


def test_codes_stay_as_they_lie_where_the_same_format_is_asked_for(written, config):
    source, quantized = written
    wanted, found = states(load(source, config)), states(load(quantized, config))
    assert set(found) == set(wanted)
    for path, state in wanted.items():
        assert found[path].format == config.format
        for name, tensor in state.tensors.items():
            assert torch.equal(found[path].tensors[name], tensor), (path, name)


@pytest.mark.parametrize("config", [Nf4Config(), Fp4Config()], ids=str, indirect=True)
@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32])
def test_codes_in_another_storage_dtype_are_the_same_bytes(written, config, storage):
    """bnb_4bit_quant_storage: what FSDP needs."""
    source, quantized = written
    file = quantized / "model.safetensors"
    tensors = load_file(file)
    names = {name for name in tensors if f"{name}.quant_state.bitsandbytes__{config.format}" in tensors}
    save_file({name: t.view(-1).view(storage) if name in names else t for name, t in tensors.items()}, file)
    wanted, found = states(load(source, config)), states(load(quantized, config))
    assert names
    for path, state in wanted.items():
        assert torch.equal(found[path].tensors["codes"], state.tensors["codes"]), path


def test_without_quantization_it_reads_back_as_the_numbers_bitsandbytes_computes_with(written, config):
    from transformers import AutoModelForCausalLM

    pytest.importorskip("bitsandbytes")
    theirs = AutoModelForCausalLM.from_pretrained(written[1], local_files_only=True, attn_implementation="eager")
    ids = torch.arange(3, 40)[None]
    wanted = theirs.train()(ids).logits.detach()  # in training bitsandbytes computes in the dtype of the input
    with torch.no_grad():
        found = load(written[1], None).model(ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_another_format_is_made_of_the_numbers(written):
    assert {state.format for state in states(load(written[1], {"format": "int4"})).values()} == {"int4"}


def damaged(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(TopcoatError) as caught:
        DirectorySource(folder).tensors()
    return str(caught.value)


NAME = "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize("config", [Nf4Config()], ids=str, indirect=True)
def test_a_part_that_is_missing_is_named(written):
    said = damaged(written[1], lambda tensors: tensors.pop(f"{NAME}.weight.absmax"))
    assert f"{NAME}.weight.absmax is not there" in said


@pytest.mark.parametrize("config", [Nf4Config()], ids=str, indirect=True)
def test_a_state_that_is_no_state_is_named(written):
    state = f"{NAME}.weight.quant_state.bitsandbytes__nf4"

    def change(tensors):
        facts = json.loads(bytes(tensors[state].tolist())) | {"blocksize": 63}
        tensors[state] = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)

    assert "its quant_state is not bitsandbytes'" in damaged(written[1], change)


@pytest.mark.parametrize("config", [Int8Config()], ids=str, indirect=True)
def test_scales_of_another_count_are_named(written):
    said = damaged(written[1], lambda tensors: tensors.update({f"{NAME}.SCB": torch.ones(3)}))
    assert f"{NAME}.SCB is F32 [3], and should be 64 of F32" in said


@pytest.mark.parametrize("config", [Nf4Config()], ids=str, indirect=True)
@pytest.mark.parametrize("shape", [[-64, -128], [64], [0, 128]])
def test_a_shape_that_is_none_is_named(written, shape):
    state = f"{NAME}.weight.quant_state.bitsandbytes__nf4"

    def change(tensors):
        facts = json.loads(bytes(tensors[state].tolist())) | {"shape": shape}
        tensors[state] = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)

    assert "its shape are not ones that bitsandbytes writes" in damaged(written[1], change)
