"""What every adapter method promises, on every number format. A method is covered once it is listed in METHODS."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from topcoat.adapters.attach import attach
from topcoat.adapters.files import load_adapter, save_adapter
from topcoat.adapters.lora import Lora
from topcoat.adapters.methods import METHODS
from topcoat.adapters.settings import (
    AdaloraConfig,
    DoraConfig,
    FullConfig,
    Ia3Config,
    IecConfig,
    LoraConfig,
    MissConfig,
    QaloraConfig,
    VeraConfig,
)
from topcoat.adapters.start import Start
from topcoat.model.blocks import read_blocks
from topcoat.quant.formats import FORMATS
from topcoat.quant.linear import FrozenLinear

CONFIGS = {name: kind.Config(format=name) for name, kind in FORMATS.items() if name != "gguf"}
if "gguf" in FORMATS:
    CONFIGS["gguf"] = FORMATS["gguf"].Config(format="gguf", type="Q8_0")
CONFIGS["gptq"] = FORMATS["gptq"].Config(format="gptq", group_size=32)
X = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(3))


def frozen_linear(format: str, compute_dtype: torch.dtype = torch.float32) -> FrozenLinear:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(24, 64, generator=generator), torch.randn(24, generator=generator)
    return FrozenLinear.from_dense(weight, bias, CONFIGS[format], compute_dtype)


def digest(module: nn.Module) -> str:
    """Hash of all bytes that must not change."""
    names = sorted(module.state_dict())
    tensors = [module.state_dict()[name].reshape(-1).view(torch.uint8).numpy().tobytes() for name in names]
    return hashlib.sha256(b"".join(tensors)).hexdigest()


CASES = {
    **{name: method.Config() for name, method in METHODS.items() if name not in ("ia3", "miss", "qalora")},
    "qalora": QaloraConfig(r=2),
    "ia3 of outputs": Ia3Config(feedforward_modules=[]),
    "ia3 of inputs": Ia3Config(feedforward_modules=["q_proj"]),
    "miss": MissConfig(r=16),
    "miss that does not divide": MissConfig(r=10),
    "iec that does not divide": IecConfig(r=10),
    "rslora": LoraConfig(use_rslora=True),
    "lora-fa": LoraConfig(freeze_lora_a=True),
    "gaussian": LoraConfig(init_lora_weights="gaussian"),
}
"""Every method, and the variants of LoRA that start with a zero change, bit for bit."""
MOVING = {
    "orthogonal": LoraConfig(init_lora_weights="orthogonal"),
    "pissa": LoraConfig(init_lora_weights="pissa"),
    "fast pissa": LoraConfig(init_lora_weights="pissa_niter_4", use_rslora=True),
    "olora": LoraConfig(init_lora_weights="olora"),
}
"""Starts whose change is zero up to rounding."""


def made(config, format: str, dtype: torch.dtype = torch.float32):
    """One layer at its start."""
    layers = METHODS[config.method].build({"q_proj": frozen_linear(format, dtype)}, config, Start(1))
    return layers["q_proj"]


ONLY_ON = {"qalora": ("int2", "int3", "int4")}
"""Methods that not every number format can carry."""
PAIRS = [
    (name, format)
    for name, config in CASES.items()
    for format in sorted(CONFIGS)
    if format in ONLY_ON.get(config.method, CONFIGS)
]


@pytest.fixture(params=PAIRS, ids="-".join)
def adapter(request):
    name, format = request.param
    return made(CASES[name], format)


def moved(adapter):
    """Stands in for training: no term is zero any more."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapter


@pytest.mark.parametrize("config", MOVING.values(), ids=MOVING.keys())
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_start_that_takes_part_of_the_weight_gives_it_back(config, dtype, most):
    adapter = made(config, "fp32", dtype)
    assert float(adapter.lora_B.detach().abs().max()) > 0.01
    assert not adapter.changes() or config.init_lora_weights == "orthogonal"
    assert_close(adapter(X), adapter.base(X), rtol=0, atol=most * float(adapter.base(X).abs().max()))
    merged = F.linear(X, moved(adapter).merged_weight(), adapter.base.bias.float())
    assert_close(merged, adapter(X).float(), rtol=0, atol=most * float(merged.abs().max()))
    assert adapter.changes()


def test_a_fresh_adapter_changes_nothing(adapter):
    assert torch.equal(adapter(X), adapter.base(X))
    assert torch.equal(adapter.merged_weight(), adapter.base.dense_weight(torch.float32))
    assert not adapter.changes()


@pytest.mark.parametrize(("name", "format"), PAIRS)
def test_a_fresh_adapter_changes_nothing_in_bf16(name, format):
    adapter = made(CASES[name], format, torch.bfloat16)
    assert torch.equal(adapter(X), adapter.base(X))


def test_the_merged_weight_computes_what_the_adapter_computes(adapter):
    moved(adapter)
    assert_close(F.linear(X, adapter.merged_weight(), adapter.merged_bias()), adapter(X), rtol=1e-5, atol=1e-4)
    assert float((adapter(X) - adapter.base(X)).detach().abs().max()) > 0.01


def test_switched_off_it_is_the_base_bit_for_bit(adapter):
    moved(adapter).enabled = False
    assert torch.equal(adapter(X), adapter.base(X))


def test_all_parameters_train_in_float32_whatever_the_base_is_stored_in(adapter):
    assert all(p.dtype == torch.float32 for p in adapter.parameters())
    frozen = [name for name, p in adapter.named_parameters() if not p.requires_grad]
    assert frozen == (["lora_A"] if isinstance(adapter, Lora) and adapter.config.freeze_lora_a else [])


def test_training_moves_the_adapter_and_not_one_byte_of_the_base(adapter):
    before = digest(adapter.base)
    start = {name: p.detach().clone() for name, p in adapter.named_parameters()}
    optimizer = torch.optim.SGD([p for p in adapter.parameters() if p.requires_grad], lr=1e-4)
    for _ in range(2):  # after one step lora_A has not moved: its gradient was zero
        optimizer.zero_grad()
        adapter(X).square().sum().backward()
        optimizer.step()
    assert digest(adapter.base) == before
    still = {name for name, p in adapter.named_parameters() if torch.equal(p, start[name])}
    assert still == {name for name, p in adapter.named_parameters() if not p.requires_grad}


def test_the_gradient_of_the_input_is_that_of_the_merged_weight(adapter):
    moved(adapter)
    x, same = X.clone().requires_grad_(), X.clone().requires_grad_()
    adapter(x).square().sum().backward()
    F.linear(same, adapter.merged_weight(), adapter.merged_bias()).square().sum().backward()
    assert_close(x.grad, same.grad, rtol=1e-4, atol=1e-4 * float(same.grad.abs().max()))


@pytest.mark.parametrize("format", sorted(CONFIGS))
def test_the_first_backward_gives_lora_a_exactly_nothing_and_lora_b_something(format):
    adapter = made(LoraConfig(), format)
    adapter(X).square().sum().backward()
    assert not adapter.lora_A.grad.any()
    assert bool(adapter.lora_B.grad.any(1).all())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.floats(0.5, 64), st.booleans(), st.sampled_from(sorted(CONFIGS)))
def test_merged_is_unmerged_for_any_rank_and_scale(r, lora_alpha, use_rslora, format):
    config = LoraConfig(r=r, lora_alpha=lora_alpha, use_rslora=use_rslora)
    adapter = Lora(frozen_linear(format), config)
    adapter.reset(torch.Generator().manual_seed(1))
    moved(adapter)
    unmerged = adapter(X)
    merged = F.linear(X, adapter.merged_weight(), adapter.base.bias)
    assert_close(merged, unmerged, rtol=1e-4, atol=1e-5 * float(unmerged.detach().abs().max()))


def test_every_method_is_covered_here():
    assert {config.method for config in CASES.values()} == set(METHODS)


ON_A_MODEL = {
    "lora": LoraConfig(r=4),
    "dora": DoraConfig(r=4),
    "ia3": Ia3Config(),
    "vera": VeraConfig(r=8),
    "miss": MissConfig(r=6),
    "lora-fa": LoraConfig(r=4, freeze_lora_a=True),
    "qalora": QaloraConfig(r=2),
    "adalora": AdaloraConfig(init_r=6, target_r=4),
    "iec": IecConfig(r=4),
}
SAVED_AS = {IecConfig: LoraConfig}
"""Settings type -> the one its files are read with, where that is another."""
ON_A_FORMAT = [
    (name, format)
    for name, config in ON_A_MODEL.items()
    for format in ("fp32", "nf4", "int8", "bf16", "int4")
    if format in ONLY_ON.get(config.method, ("fp32", "nf4", "int8", "bf16"))
]
SUITED = {"qalora": "int4"}
"""Method -> a format that it can be tried on, where fp32 is none."""


def test_every_method_stands_on_a_model_too():
    assert {config.method for config in ON_A_MODEL.values()} == set(METHODS)


@pytest.mark.parametrize(("name", "format"), ON_A_FORMAT)
def test_on_a_model_fresh_off_and_detached_are_the_base_bit_for_bit(load, logits, train_a_little, format, name):
    base, config = load(format=format), ON_A_MODEL[name]
    before, bytes_before, modules = logits(base.model), digest(base.model), [n for n, _ in base.model.named_modules()]
    adapters = attach(base.model, config)
    assert torch.equal(logits(base.model), before)
    train_a_little(adapters)
    assert not torch.allclose(logits(base.model), before, atol=1e-3)
    with adapters.off():
        assert torch.equal(logits(base.model), before)
    assert not torch.allclose(logits(base.model), before, atol=1e-3)
    adapters.detach()
    assert torch.equal(logits(base.model), before)
    assert digest(base.model) == bytes_before
    assert [n for n, _ in base.model.named_modules()] == modules


@pytest.mark.parametrize("config", ON_A_MODEL.values(), ids=ON_A_MODEL.keys())
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_saved_loaded_and_saved_again_is_the_same_bytes_and_logits(
    load, logits, train_a_little, tmp_path, config, model_type
):
    format = SUITED.get(config.method, "fp32")
    model = load(model_type, format).model
    adapters = attach(model, config, seed=7)
    train_a_little(adapters)
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    save_adapter(adapters, folders[0], "tiny")
    again = load(model_type, format).model
    loaded = load_adapter(again, folders[0])
    assert type(loaded.config) is SAVED_AS.get(type(config), type(config))
    assert torch.equal(logits(again), logits(model))
    save_adapter(loaded, folders[1], "tiny")
    for file in folders[0].iterdir():
        assert (folders[1] / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("config", ON_A_MODEL.values(), ids=ON_A_MODEL.keys())
def test_only_what_is_a_sum_of_low_rank_terms_takes_the_hand_written_blocks(load, config):
    model = load(format=SUITED.get(config.method, "fp32")).model
    attach(model, config)
    blocks = read_blocks(model)
    if type(config) in (LoraConfig, QaloraConfig, AdaloraConfig, IecConfig):
        assert len(blocks) == 2
    else:
        assert isinstance(blocks, str)
        assert blocks.startswith("layers.0.")


@pytest.mark.parametrize("config", [*ON_A_MODEL.values(), LoraConfig(r=4, modules_to_save=["lm_head"]), FullConfig()])
def test_what_trains_is_what_the_method_lists(load, config):
    base = load(format=SUITED.get(config.method, "fp32"))
    adapters = attach(base.model, config)
    trainable = {id(p) for p in base.model.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in adapters.parameters().values()}
    assert all(p.dtype == torch.float32 for p in adapters.parameters().values())
    assert adapters.count() == sum(p.numel() for p in base.model.parameters() if p.requires_grad)
