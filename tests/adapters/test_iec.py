"""IEC against the paper's formulas written with means and repetitions, in double precision; and as a plain LoRA."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from topcoat.adapters.as_lora import as_lora
from topcoat.adapters.attach import attach
from topcoat.adapters.files import load_adapter, save_adapter
from topcoat.adapters.iec import Iec, averages
from topcoat.adapters.lora import Lora
from topcoat.adapters.settings import IecConfig, LoraConfig
from topcoat.adapters.start import Start
from topcoat.model.attention import attention_inputs, register
from topcoat.model.fuse import fuse
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import DenseConfig

peft = pytest.importorskip("peft")


def one_layer(config: IecConfig, out_features: int = 20, in_features: int = 30, moved: float = 0.2) -> Iec:
    generator = torch.Generator().manual_seed(0)
    weight, bias = (
        torch.randn(out_features, in_features, generator=generator),
        torch.randn(out_features, generator=generator),
    )
    base = FrozenLinear.from_dense(weight, bias, DenseConfig(format="fp32"), torch.float32)
    layer = Iec.build({"q_proj": base}, config, Start(2))["q_proj"]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(moved * torch.randn(parameter.shape, generator=generator))
    return layer


def grouped(x: Tensor, wanted: int) -> Tensor:
    """x (..., N) -> (..., wanted): means over gcd(N, wanted) groups of neighbours, each repeated in a row."""
    groups = math.gcd(x.shape[-1], wanted)
    means = [x[..., k * x.shape[-1] // groups : (k + 1) * x.shape[-1] // groups].mean(-1) for k in range(groups)]
    return torch.stack([means[k * groups // wanted] for k in range(wanted)], -1)


def definition(layer: Iec, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    p = {name: v.detach().double().requires_grad_() for name, v in layer.named_parameters()}
    h = x @ p["lora_A"].T + p["iec_pool"] * grouped(x, layer.config.r)
    update = h @ p["lora_B"].T + p["iec_spread"] * grouped(h, layer.base.out_features)
    W, b = layer.base.dense_weight(torch.float32).double(), layer.base.bias.double()
    return x @ W.T + b + layer.scale * update, p


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(12, 40), st.booleans())
def test_values_and_gradients_are_the_papers_for_any_sizes(r, out_features, in_features, use_rslora):
    out_features = max(out_features, r)
    layer = one_layer(IecConfig(r=r, use_rslora=use_rslora), out_features, in_features)
    x = torch.randn(2, 5, in_features, generator=torch.Generator().manual_seed(r))
    mine, same = x.clone().requires_grad_(), x.double().requires_grad_()
    expected, p = definition(layer, same)
    expected.square().sum().backward()
    found = layer(mine)
    found.square().sum().backward()
    most = float(expected.detach().abs().max())
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * most)
    assert_close(mine.grad.double(), same.grad, rtol=1e-4, atol=1e-5 * float(same.grad.abs().max()))
    for name, parameter in layer.named_parameters():
        grad = p[name].grad
        assert_close(parameter.grad.double(), grad, rtol=1e-4, atol=2e-5 * float(grad.abs().max()))


def test_where_the_rank_divides_it_is_the_form_of_the_authors_code():
    """Means of in / r neighbours; each of r entries out / r times in a row."""
    x = torch.arange(12.0)
    assert torch.equal(averages(3, 12, x) @ x, x.view(3, 4).mean(-1))
    h = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(averages(6, 3, h) @ h, h.repeat_interleave(2))


def test_folded_it_equals_unfolded_to_the_last_bits_of_float64():
    layer = one_layer(IecConfig(r=5)).double()
    x = torch.randn(4, 30, dtype=torch.float64)
    A, B = layer._both()
    W, b = layer.base.dense_weight(torch.float32).double(), layer.base.bias.double()
    expected, _ = definition(layer, x)
    assert_close(x @ (W + layer.scale * B @ A).T + b, expected, rtol=0, atol=1e-12)


def test_without_its_short_paths_it_is_lora():
    layer = one_layer(IecConfig(r=5))
    plain = Lora(layer.base, LoraConfig(r=5))
    with torch.no_grad():
        layer.iec_pool.zero_()
        layer.iec_spread.zero_()
    plain.take(layer.lora_A, layer.lora_B)
    x = torch.randn(3, 30)
    assert torch.equal(layer(x), plain(x))


def test_dropout_leaves_the_short_path_what_it_reads():
    layer = one_layer(IecConfig(r=5, lora_dropout=0.5)).train()
    x = torch.randn(2, 7, 30, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(11)
    found = layer(x)
    torch.manual_seed(11)
    dropped = torch.nn.functional.dropout(x, 0.5)
    h = dropped @ layer.lora_A.T + layer.iec_pool * grouped(x, 5)
    update = h @ layer.lora_B.T + layer.iec_spread * grouped(h, 20)
    assert_close(found, layer.base(x) + layer.scale * update, rtol=1e-4, atol=1e-4)
    assert torch.equal(layer.eval()(x), layer(x))
    assert layer.low_rank() == "IEC with dropout reads its input both dropped and as it is"


@pytest.mark.parametrize("r", [4, 6])  # 6 divides neither 64 nor 32
def test_its_file_is_a_plain_lora_that_computes_the_same_here_and_in_peft(
    load, logits, from_transformers, train_a_little, tmp_path, r
):
    model = load().model
    adapters = attach(model, IecConfig(r=r, rank_pattern={"v_proj": 2}, alpha_pattern={"up_proj": 3}))
    assert [name.rpartition(".")[2] for name in adapters.parameters()][:4] == [
        "lora_A",
        "lora_B",
        "iec_pool",
        "iec_spread",
    ]
    train_a_little(adapters)
    save_adapter(adapters, tmp_path, "tiny")
    again = load().model
    loaded = load_adapter(again, tmp_path)
    assert type(loaded.config) is LoraConfig
    assert torch.equal(logits(again), logits(model))
    theirs = peft.PeftModel.from_pretrained(from_transformers(), tmp_path)
    assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)


def test_it_is_folded_for_readers_of_one_rank_and_no_scale(load, logits, train_a_little, tmp_path):
    model = load().model
    adapters = attach(
        model,
        IecConfig(r=4, lora_alpha=1.0, rank_pattern={"v_proj": 2}, use_rslora=True, trainable_token_indices=[5, 9]),
    )
    train_a_little(adapters)
    plain = as_lora(adapters, pad=True)
    assert {len(layer.lora_A) for layer in plain.layers.values()} == {4}
    assert {layer.scale for layer in plain.layers.values()} == {1.0}
    for path, layer in plain.layers.items():
        assert_close(layer.merged_weight(), adapters.layers[path].merged_weight(), rtol=0, atol=1e-6)
    save_adapter(plain, tmp_path, "tiny")
    again = load().model
    load_adapter(again, tmp_path)
    assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)


def test_the_hand_written_blocks_compute_it_and_its_gradients(load, train_a_little):
    """Two backwards, so that nothing of the first is left in the second."""
    register()
    grads = []
    for fast in (False, True):
        model = load().model
        model.set_attn_implementation("topcoat")
        adapters = attach(model, IecConfig(r=4))
        train_a_little(adapters)
        ids, positions = torch.arange(3, 40)[None], torch.arange(37)[None]
        inputs = attention_inputs(model, ids, positions, [(0, 37)])
        fused = fuse(model) if fast else None
        assert not isinstance(fused, str)
        for _ in range(2):
            states = fused.hidden(inputs) if fused else model.model(**inputs, use_cache=False).last_hidden_state
            states.square().sum().backward()
        grads.append({name: p.grad for name, p in adapters.parameters().items()})
    for name, grad in grads[0].items():
        assert grad.any()
        assert_close(grads[1][name], grad, rtol=1e-3, atol=1e-4 * float(grad.abs().max()))
