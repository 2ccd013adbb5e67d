"""QA-LoRA: the paper's own formula, the integers that take the update up, files, and what is refused."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaConfig

from topcoat.adapters.attach import attach
from topcoat.adapters.files import load_adapter, save_adapter
from topcoat.adapters.qalora import Qalora, group_size, widened
from topcoat.adapters.settings import LoraConfig, QaloraConfig
from topcoat.adapters.start import Start
from topcoat.errors import TopcoatError
from topcoat.kernels.arena import Arena
from topcoat.kernels.huge_pages import Slabs
from topcoat.kernels.packed_codes import unpack_bits
from topcoat.kernels.projection import LowRank, Projection
from topcoat.model.attention import attention_inputs
from topcoat.model.fuse import fuse
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import DenseConfig, GgufConfig, IntConfig, Nf4Config
from topcoat.quant.stacked import StackedWeight


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_on(stored, config: QaloraConfig, shape: tuple[int, int] = (24, 128), seed: int = 0) -> Qalora:
    """One trained layer."""
    base = FrozenLinear.from_dense(drawn(*shape, seed=seed), drawn(shape[0]), stored, torch.float32)
    layer = Qalora.build({"q_proj": base}, config, Start(1))["q_proj"]
    with torch.no_grad():
        layer.lora_B.copy_(0.3 * drawn(*layer.lora_B.shape, seed=seed + 1))
    return layer


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["int2", "int3", "int4"]),
    st.sampled_from([16, 32, 64]),
    st.sampled_from([1, 2]),
    st.integers(1, 2),
    st.floats(0.5, 64),
)
def test_it_computes_what_the_authors_code_computes(format, group, times, r, alpha):
    """AvgPool1d(group) of x, then A and B, as in the reference implementation (yuhuixu1993/qa-lora)."""
    r = min(r, 128 // (group * times))
    config = QaloraConfig(r=r, lora_alpha=alpha, qalora_group_size=group * times)
    layer = layer_on(IntConfig(format=format, group_size=group), config)
    x = drawn(3, 5, 128, seed=7)
    pooled = nn.AvgPool1d(group * times)(x.double())
    update = alpha / r * pooled @ layer.lora_A.double().T @ layer.lora_B.double().T
    assert_close(layer(x), (layer.base(x).double() + update).float(), rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([2, 3, 4]), st.sampled_from([16, 32, 64]), st.integers(0, 99))
def test_the_lowest_values_take_the_update_up_and_the_codes_stay(bits, group, seed):
    """In float64 the merged integers are W + s B A pool to 1e-12, whatever was drawn."""
    stored = IntConfig(format=f"int{bits}", group_size=group)
    layer = layer_on(stored, QaloraConfig(r=2, qalora_group_size=group), seed=seed)
    state = layer.base.weight_state
    codes = unpack_bits(state.tensors["codes"], bits).double().unflatten(1, (-1, group))
    low = state.tensors["low"].double() + layer.delta_low()
    merged = (codes * state.tensors["scale"].double()[..., None] + low[..., None]).flatten(1)
    x = drawn(9, 128, seed=3).double()
    base = (codes * state.tensors["scale"].double()[..., None] + state.tensors["low"].double()[..., None]).flatten(1)
    pooled = x.unflatten(1, (-1, group)).mean(-1)
    expected = x @ base.T + layer.scale * pooled @ layer.lora_A.double().T @ layer.lora_B.double().T
    assert_close(x @ merged.T, expected, rtol=1e-12, atol=1e-12)
    assert_close(layer.merged_weight().double(), merged, rtol=0, atol=1e-5)


def test_smollm2_trains_2_563_200_numbers_at_rank_16():
    with torch.device("meta"):
        sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
        model = AutoModelForCausalLM.from_config(
            LlamaConfig(**sizes, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)
        )
    linears = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    config = QaloraConfig(r=16)
    shapes = [(m.out_features, m.in_features) for m in linears]
    assert sum(config.r * (i // config.qalora_group_size + o) for o, i in shapes) == 2_563_200


def test_the_hand_written_blocks_compute_and_learn_the_same(load):
    """One step through the fused stack and through transformers' layers: outputs and gradients."""
    base = load(format="int4")
    adapters = attach(base.model, QaloraConfig(r=2))
    with torch.no_grad():
        for n, parameter in enumerate(adapters.parameters().values()):
            parameter.add_(0.2 * drawn(*parameter.shape, seed=n))
    fused = fuse(base.model)
    assert not isinstance(fused, str)
    inputs = attention_inputs(base.model, torch.arange(3, 40)[None], torch.arange(37)[None], [(0, 37)])
    plain = base.model.model(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
    plain.square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in adapters.parameters().items()}
    for parameter in adapters.parameters().values():
        parameter.grad = None
    hidden = fused.hidden(inputs)
    hidden.square().sum().backward()
    assert_close(hidden, plain, rtol=1e-5, atol=1e-5)
    for name, parameter in adapters.parameters().items():
        assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-4 * float(wanted[name].abs().max()), msg=name)


def test_a_stack_of_pooled_and_plain_adapters_gives_each_its_own_gradient():
    """float64 autograd of the definition against the products written by hand."""
    W = FrozenLinear.from_dense(drawn(6, 8), None, DenseConfig(format="fp32"), torch.float32)
    A1, B1 = drawn(2, 2, seed=1).requires_grad_(), drawn(3, 2, seed=2).requires_grad_()
    A2, B2 = drawn(1, 8, seed=3).requires_grad_(), drawn(3, 1, seed=4).requires_grad_()
    weight = StackedWeight([W], Slabs(torch.device("cpu")))
    stack = Projection(weight, None, [LowRank(A1, B1, 0.5, 0, group=4), LowRank(A2, B2, 2.0, 3)])
    stack.refresh(torch.float32, torch.device("cpu"))
    x, g = drawn(5, 8, seed=5), drawn(5, 6, seed=6)
    h = torch.empty(5, 3)
    out = stack.forward(x, torch.empty(5, 6), h, adapted=True, have_h=False, seed=None)
    pooled = x.unflatten(1, (2, 4)).mean(-1)
    expected = x @ W.dense_weight(torch.float32).T
    expected = expected + torch.cat((0.5 * pooled @ A1.T @ B1.T, 2 * x @ A2.T @ B2.T), 1)
    assert_close(out, expected)
    grads = stack.backward(g, None, x, h, Arena(torch.device("cpu")), None)
    expected.backward(g)
    for found, parameter in zip(grads, (A1, B1, A2, B2), strict=True):
        assert_close(found, parameter.grad)


def trained_on(load, **settings):
    base = load(format="int4")
    adapters = attach(base.model, QaloraConfig(r=2, **settings))
    with torch.no_grad():
        for n, parameter in enumerate(adapters.parameters().values()):
            parameter.add_(0.2 * drawn(*parameter.shape, seed=n))
    return base, adapters


def test_peft_computes_our_file_as_the_plain_lora_that_it_is(load, logits, tmp_path, folder_of):
    peft = pytest.importorskip("peft")
    base, adapters = trained_on(load, lora_alpha=3, rank_pattern={"q_proj": 1}, use_rslora=True)
    save_adapter(adapters, tmp_path, "tiny")
    model = AutoModelForCausalLM.from_pretrained(folder_of(), dtype=torch.float32)
    for path, layer in adapters.layers.items():
        model.get_submodule(path).weight.data = layer.base.dense_weight(torch.float32)
    assert_close(logits(peft.PeftModel.from_pretrained(model, tmp_path)), logits(base.model), rtol=1e-5, atol=1e-5)


def test_without_topcoats_own_file_it_is_read_as_that_plain_lora_on_any_base(load, logits, tmp_path):
    base, adapters = trained_on(load)
    save_adapter(adapters, tmp_path, "tiny")
    (tmp_path / "topcoat.json").unlink()
    again = load(format="int4").model
    assert type(load_adapter(again, tmp_path).config) is LoraConfig
    assert_close(logits(again), logits(base.model), rtol=1e-5, atol=1e-5)


def test_a_file_of_pefts_use_qalora_computes_here_what_it_computes_there(load, tmp_path, folder_of):
    """PEFT's own variant on a layer of its GPTQ kind, whose base is ours: y = W x + s L mean(x) A B."""
    pytest.importorskip("peft")
    from peft import LoraConfig as TheirConfig
    from peft.tuners.lora.gptq import GPTQLoraLinear

    base = load(format="int4")
    names = ["self_attn.q_proj", "mlp.down_proj"]
    tensors, theirs = {}, {}
    for name in names:
        linear = base.model.get_submodule(f"model.layers.0.{name}")
        inner = nn.Linear(linear.in_features, linear.out_features, bias=False)
        inner.weight.data = linear.dense_weight(torch.float32)
        layer = GPTQLoraLinear(inner, "default", TheirConfig(r=3, lora_alpha=5, use_qalora=True), r=3, lora_alpha=5)
        for n, factor in enumerate((layer.lora_A["default"], layer.lora_B["default"])):
            factor.weight.data = drawn(*factor.weight.shape, seed=n)
            key = f"base_model.model.model.layers.0.{name}.lora_{'AB'[n]}.weight"
            tensors[key] = factor.weight.data.clone()
        theirs[name] = layer
    safetensors.torch.save_file(tensors, tmp_path / "adapter_model.safetensors")
    stated = {"peft_type": "LORA", "r": 3, "lora_alpha": 5, "use_qalora": True, "qalora_group_size": 16}
    stated["target_modules"] = [f"model.layers.0.{name}" for name in names]
    (tmp_path / "adapter_config.json").write_text(json.dumps(stated))
    adapters = load_adapter(base.model, tmp_path)
    for name, layer in theirs.items():
        x = drawn(4, layer.in_features, seed=9)
        assert_close(adapters.layers[f"model.layers.0.{name}"](x), layer(x), rtol=1e-4, atol=1e-4)


def test_a_group_size_of_peft_that_is_none_is_named(load, tmp_path):
    _, adapters = trained_on(load)
    save_adapter(adapters, tmp_path, "tiny")
    stated = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(stated | {"use_qalora": True, "qalora_group_size": "x"}))
    with pytest.raises(TopcoatError, match="qalora_group_size is 'x', no whole number"):
        load_adapter(load(format="int4").model, tmp_path)


@pytest.mark.parametrize(("group", "message"), [(7, "is 7, no size of a group"), (64, "differs inside groups of 64")])
def test_a_topcoat_json_that_does_not_fit_the_tensors_is_named(load, tmp_path, group, message):
    _, adapters = trained_on(load)
    save_adapter(adapters, tmp_path, "tiny")
    stated = json.loads((tmp_path / "topcoat.json").read_text())
    (tmp_path / "topcoat.json").write_text(json.dumps(stated | {"qalora_group_size": group}))
    with pytest.raises(TopcoatError, match=message):
        load_adapter(load(format="int4").model, tmp_path)


@pytest.mark.parametrize(
    ("stored", "settings", "message", "fix"),
    [
        (Nf4Config(), {}, "needs integer weights with a lowest value, and they are nf4", "{format: int4}"),
        (DenseConfig(format="fp32"), {}, "and they are fp32", "exclude_modules"),
        (GgufConfig(type="Q8_0"), {}, "and they are gguf", "exclude_modules"),
        (
            IntConfig(group_size=64),
            {},
            "is 32, and these rows of 128 weights have groups of 64",
            "qalora_group_size: 64",
        ),
        (IntConfig(), {"qalora_group_size": 256}, "is 256, and these rows of 128", "qalora_group_size: 32"),
        (IntConfig(), {"r": 5}, "rank 5 is above q_proj's, which has 4 groups of 32 in a row", "r: 4 or less"),
    ],
)
def test_what_cannot_take_the_update_up_is_refused_with_the_way_out(stored, settings, message, fix):
    with pytest.raises(TopcoatError) as caught:
        layer_on(stored, QaloraConfig(**{"r": 2} | settings))
    assert message in str(caught.value)
    assert fix in caught.value.problems[0].fix
    assert caught.value.problems[0].where


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1"])
def test_blocks_of_a_gguf_that_have_a_lowest_value_carry_it_too(kind):
    layer = layer_on(GgufConfig(type=kind), QaloraConfig(r=2))
    assert group_size(layer.base) == 32
    x = drawn(3, 128)
    assert_close(x @ layer.merged_weight().T + layer.base.bias, layer(x), rtol=1e-5, atol=1e-5)


def test_widening_and_narrowing_keep_every_bit():
    A = torch.cat((drawn(3, 5), torch.tensor([[1e-30, 3.0e38, -0.0, 1.0, 7e-12]])))
    wide = widened(A, 256)
    assert torch.equal(wide.unflatten(1, (-1, 256))[..., 0] * 256, A)


def test_dropout_drops_inputs_before_they_are_pooled():
    layer = layer_on(IntConfig(), QaloraConfig(r=2, lora_dropout=0.5)).train()
    x = torch.ones(2000, 128)
    torch.manual_seed(0)
    update = layer(x) - layer.base(x)
    assert_close(update.mean(0), (layer.eval()(x) - layer.base(x)).mean(0), rtol=0.1, atol=0.01)
    assert float(update.std(0).max()) > 0.01
