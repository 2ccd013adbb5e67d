"""Topcoat's own layout holds what GPTQ and AWQ files have and Topcoat does not make, and loads it again, exactly."""

import json

import pytest
import torch
from packed_checkpoints import awq_linear, gptq_linear, repack, rng
from safetensors.torch import load_file, save_file

from topcoat.errors import TopcoatError
from topcoat.exporting.checkpoint import quantize_checkpoint
from topcoat.model.load import load_model
from topcoat.model.safetensors_source import DirectorySource
from topcoat.model.settings import ModelSettings
from topcoat.model.tiny import save_tiny
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import DenseConfig, GptqConfig, Nf4Config, StoredConfig

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
KINDS = {
    "activation order": (GPTQ | {"desc_act": True}, {"group_size": 32, "act_order": True}, torch.float16),
    "bf16 scales": (GPTQ, {"group_size": 32}, torch.bfloat16),
    "fp32 scales": (GPTQ, {"group_size": 32}, torch.float32),
    "short last groups": (GPTQ | {"group_size": 64}, {"group_size": 64}, torch.float16),
    "awq, bf16 scales": (AWQ, {"group_size": 32}, torch.bfloat16),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("plain") / "llama", "llama", intermediate_size=160, layers=1)


def linears(path, quantization):
    settings = ModelSettings(path=str(path), quantization=quantization, compute_dtype="fp32", device="cpu")
    return {n: m for n, m in load_model(settings).model.named_modules() if isinstance(m, FrozenLinear)}


def written(plain, out, kind):
    """A checkpoint of `kind` at `out`; its linears."""
    facts, variant, dtype = KINDS[kind]
    source = rng(4)
    if facts["quant_method"] == "awq":
        repack(plain, out, lambda rows, columns: awq_linear(source, rows, columns, **variant), facts)
    else:
        repack(plain, out, lambda rows, columns: gptq_linear(source, rows, columns, 4, **variant), facts)
    file = out / "model.safetensors"
    tensors = load_file(file)
    save_file({n: t.to(dtype) if n.endswith(".scales") else t for n, t in tensors.items()}, file)
    return linears(out, StoredConfig())


def same(one, other):
    a, b = one.weight_state, other.weight_state
    return a.format == b.format and all(torch.equal(b.tensors[k], t) for k, t in a.tensors.items())


@pytest.mark.parametrize("kind", KINDS)
def test_what_other_programs_quantized_is_the_same_after_it_was_written_beside_an_override(plain, tmp_path, kind):
    wanted = written(plain, tmp_path / "q", kind)
    size = KINDS[kind][0]["group_size"]
    config = GptqConfig(bits=4, group_size=size, overrides={"*.q_proj": "int8"})
    report = quantize_checkpoint(DirectorySource(tmp_path / "q"), tmp_path / "out", config, "fp32")
    found = linears(tmp_path / "out", StoredConfig())
    assert set(found) == set(wanted)
    for path, module in found.items():
        if path.endswith("q_proj"):
            assert module.weight_state.format == "int8"
        else:
            assert same(wanted[path], module), path
            assert module.weight_state.tensors["scale"].dtype == KINDS[kind][2]
    stored = sum(module.weight_state.nbytes for module in found.values())
    weights = sum(module.in_features * module.out_features for module in found.values())
    assert report["bits_per_weight"] == 8 * stored / weights


def test_an_override_may_keep_them_as_they_are_beside_another_format(plain, tmp_path):
    wanted = written(plain, tmp_path / "q", "activation order")
    config = Nf4Config(overrides={"*.down_proj": "stored"})
    quantize_checkpoint(DirectorySource(tmp_path / "q"), tmp_path / "out", config, "fp32")
    found = linears(tmp_path / "out", StoredConfig())
    name = "model.layers.0.mlp.down_proj"
    assert same(wanted[name], found[name])
    assert found["model.layers.0.mlp.up_proj"].weight_state.format == "nf4"


def test_short_last_groups_mean_what_the_definition_says(plain, tmp_path):
    source = rng(9)
    make = lambda rows, columns: gptq_linear(source, rows, columns, 4, 64)  # noqa: E731
    weights = repack(plain, tmp_path / "q", make, GPTQ | {"group_size": 64})
    for config in (StoredConfig(), GptqConfig(bits=4, group_size=64), DenseConfig(format="fp32")):
        found = linears(tmp_path / "q", config)
        assert all(torch.equal(found[n[:-7]].dense_weight(torch.float64), torch.tensor(w)) for n, w in weights.items())
    with pytest.raises(TopcoatError, match="group_size 64 does not divide rows of 160 weights") as caught:
        linears(plain, GptqConfig(bits=4, group_size=64))
    assert "use a group_size of 16 or 32 or -1" in str(caught.value)


def test_a_gptq_file_of_short_last_groups_is_not_written_as_if_they_were_full(plain, tmp_path):
    written(plain, tmp_path / "q", "short last groups")
    with pytest.raises(TopcoatError, match=r"down_proj has groups that its file lists column by column") as caught:
        quantize_checkpoint(DirectorySource(tmp_path / "q"), tmp_path / "out", GptqConfig(group_size=64), "fp32")
    fix = caught.value.problems[0].fix
    assert "overrides" in fix
    config = GptqConfig(group_size=64, overrides={"*.down_proj": {"format": "gptq", "group_size": 32}})
    quantize_checkpoint(DirectorySource(tmp_path / "q"), tmp_path / "again", config, "fp32")  # what the fix says
    linears(tmp_path / "again", StoredConfig())


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t, n: t.update({f"{n}.group": t[f"{n}.group"] + 9}), "names groups outside its 2"),
        (lambda t, n: t.update({f"{n}.group": t[f"{n}.group"][:-1].clone()}), r"group is I32 \[63\]"),
        (lambda t, n: t.update({f"{n}.group": t[f"{n}.group"].float()}), r"group is F32 \[64\]"),
        (lambda t, n: t.update({f"{n}.scale": t[f"{n}.scale"].int()}), r"scale is I32"),
    ],
)
def test_damage_to_groups_and_scales_is_named(plain, tmp_path, change, what):
    written(plain, tmp_path / "q", "activation order")
    config = GptqConfig(group_size=32, overrides={"*.q_proj": "int8"})
    quantize_checkpoint(DirectorySource(tmp_path / "q"), tmp_path / "out", config, "fp32")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    change(tensors, "model.layers.0.mlp.up_proj.weight")
    save_file(tensors, file)
    with pytest.raises(TopcoatError, match=what):
        linears(tmp_path / "out", StoredConfig())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["version"] == 1
