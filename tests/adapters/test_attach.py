"""Putting adapters on, off and away; full fine-tuning; what is refused, and that a refusal leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import topcoat
from topcoat.adapters.attach import attach
from topcoat.adapters.lora import Lora
from topcoat.adapters.settings import FullConfig, LoraConfig
from topcoat.errors import TopcoatError
from topcoat.exporting.checkpoint import quantize_checkpoint
from topcoat.model.load import load_model
from topcoat.model.safetensors_source import DirectorySource
from topcoat.model.settings import ModelSettings
from topcoat.quant.settings import DenseConfig, IntConfig, Nf4Config, StoredConfig


def state_of(model: nn.Module) -> dict[str, tuple[int, bool]]:
    """Every module's identity, and which parameters want gradients."""
    modules = {f"module {name}": (id(module), False) for name, module in model.named_modules()}
    return modules | {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}


@pytest.mark.parametrize("first", [LoraConfig(), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])])
@pytest.mark.parametrize("second", [LoraConfig(target_modules=["v_proj"]), FullConfig()])
def test_a_second_adapter_on_top_is_refused(load, first, second):
    model = load().model
    attach(model, first)
    before = state_of(model)
    with pytest.raises(TopcoatError) as caught:
        attach(model, second)
    assert str(caught.value).startswith("the model already carries an adapter\n  fix:   call detach() on it first")
    assert state_of(model) == before


def test_after_detach_another_adapter_may_be_attached(load):
    model = load().model
    attach(model, LoraConfig()).detach()
    assert len(attach(model, LoraConfig(target_modules=["q_proj"])).layers) == 2


class Small(nn.Module):
    """Nobody's architecture: a bare torch module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.tail = nn.Sequential(nn.GELU(), nn.Linear(8, 3, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.first(x))


def test_a_bare_torch_module_takes_an_adapter_by_the_public_name():
    model = Small()
    weight, before = model.first.weight, state_of(model)
    x = torch.randn(5, 6)
    expected = model(x)
    adapters = topcoat.attach(model, topcoat.LoraConfig(r=2))
    assert adapters.count() == 2 * (6 + 8) + 2 * (8 + 3)
    assert torch.equal(model(x), expected)
    assert model.first.base.get_buffer("weight").data_ptr() == weight.data_ptr()  # shared, not copied
    optimizer = torch.optim.Adam(adapters.parameters().values(), lr=0.05)
    target = torch.randn(5, 3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(loss := (model(x) - target).square().mean())
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]
    assert adapters.detach() is model
    assert state_of(model) == before  # and its own parameters train again
    assert torch.equal(model(x), expected)


def test_a_module_that_is_itself_a_linear_has_none_inside():
    with pytest.raises(TopcoatError, match="has no linear layer to adapt"):
        attach(nn.Linear(3, 4), LoraConfig())


def test_only_the_submodules_of_this_instance_are_replaced(load):
    one, other = load().model, load().model
    forward = type(one).forward
    attach(one, LoraConfig())
    assert not any(isinstance(module, Lora) for module in other.modules())
    assert type(one).forward is forward


def test_off_gives_back_what_it_found(load, logits, train_a_little):
    model = load().model
    base = logits(model)
    adapters = attach(model, LoraConfig(modules_to_save=["lm_head"]))
    train_a_little(adapters)
    trained = logits(model)
    with pytest.raises(ZeroDivisionError), adapters.off():
        raise ZeroDivisionError
    assert torch.equal(logits(model), trained)
    adapters.switch(False)
    with adapters.off():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), base)  # it was off before, so it is off now
    adapters.switch(True)
    with adapters.off(), adapters.off():
        pass
    assert torch.equal(logits(model), trained)


REFUSED = [
    (["lm_haed"], "all-linear", "adapter.modules_to_save names 'lm_haed', which no module of this model has"),
    (
        ["q_proj"],
        "all-linear",
        "layers.0.self_attn.q_proj is in both adapter.target_modules and adapter.modules_to_save",
    ),
    (["mlp"], ["q_proj"], "adapter.modules_to_save names model.layers.0.mlp, which holds frozen linears"),
    (["down_proj"], ["q_proj"], "names model.layers.0.mlp.down_proj, which holds frozen linears"),
    (["rotary_emb"], "all-linear", "names model.rotary_emb, which has no parameters of its own"),
]


@pytest.mark.parametrize(("names", "targets", "message"), REFUSED, ids=[row[0][0] for row in REFUSED])
def test_a_module_that_cannot_be_trained_whole_is_refused_and_the_model_untouched(load, names, targets, message):
    model = load().model
    before = state_of(model)
    with pytest.raises(TopcoatError) as caught:
        attach(model, LoraConfig(target_modules=targets, modules_to_save=names))
    assert message in str(caught.value)
    assert "where: adapter.modules_to_save" in str(caught.value)
    assert state_of(model) == before
    attach(model, LoraConfig())


def test_a_module_around_another_that_trains_is_refused():
    model = Small()
    with pytest.raises(TopcoatError, match=r"names tail, which contains tail\.1, which is trained already"):
        attach(model, LoraConfig(target_modules="all-linear", modules_to_save=["tail"]))


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_a_tied_module_is_not_trained_alone(load, name):
    model = load("qwen2").model
    with pytest.raises(TopcoatError) as caught:
        attach(model, LoraConfig(modules_to_save=[name]))
    text = str(caught.value)
    other = {"lm_head": "model.embed_tokens", "embed_tokens": "lm_head"}[name]
    assert f"shares its weight with {other}; training a copy of it would separate them" in text
    assert "leave tied modules out of modules_to_save" in text


def stored_outside(folder, outside):
    """A base whose embedding and head are stored as `outside`, its blocks as fp32."""
    overrides = dict.fromkeys(["embed_tokens", "lm_head"], outside)
    quantization = DenseConfig(format="fp32", overrides=overrides)
    return load_model(ModelSettings(path=str(folder), quantization=quantization, compute_dtype="fp32", device="cpu"))


@pytest.mark.parametrize("stored", ["int8", "nf4", "bf16"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, "adapter.modules_to_save trains lm_head whole, and lm_head is stored as"),
        (
            {"modules_to_save": ["embed_tokens"]},
            "adapter.modules_to_save trains model.embed_tokens whole, and model.embed_tokens is stored as",
        ),
        (
            {"trainable_token_indices": [3]},
            "adapter.trainable_token_indices trains rows of model.embed_tokens, and model.embed_tokens is stored as",
        ),
    ],
)
def test_a_head_or_embedding_that_is_stored_does_not_train_and_the_fix_works(folder_of, stored, values, message):
    model = stored_outside(folder_of(), stored).model
    before = state_of(model)
    with pytest.raises(TopcoatError) as caught:
        attach(model, LoraConfig(**values))
    text, name = str(caught.value), "lm_head" if "lm_head" in message else "embed_tokens"
    assert f"{message} {stored} by model.quantization, which never trains" in text
    assert f"where: adapter.{next(iter(values))}" in text
    assert f"take {name} out of model.quantization.overrides" in text
    assert state_of(model) == before
    others = {"lm_head": "embed_tokens", "embed_tokens": "lm_head"}[name]
    quantization = Nf4Config(overrides={others: stored})
    settings = ModelSettings(path=str(folder_of()), quantization=quantization, compute_dtype="fp32", device="cpu")
    assert attach(load_model(settings).model, LoraConfig(**values)).parameters()


def test_an_embedding_that_a_checkpoint_stores_trains_where_it_is_read_as_plain_numbers(folder_of, tmp_path):
    config = IntConfig(overrides={"embed_tokens": "int8"})
    quantize_checkpoint(DirectorySource(folder_of()), tmp_path / "q", config, "fp32")
    values = {"path": str(tmp_path / "q"), "compute_dtype": "fp32", "device": "cpu"}
    stored = load_model(ModelSettings(**values, quantization=StoredConfig())).model
    with pytest.raises(TopcoatError, match="name a format such as nf4 in place of stored"):
        attach(stored, LoraConfig(modules_to_save=["embed_tokens"]))
    plain = load_model(ModelSettings(**values, quantization=Nf4Config())).model
    assert attach(plain, LoraConfig(modules_to_save=["embed_tokens"], trainable_token_indices=[])).copies


def test_full_fine_tuning_trains_a_stored_embedding_and_head_or_says_that_they_are_quantized(folder_of, logits):
    model = stored_outside(folder_of(), "fp32").model
    before = logits(model)
    adapters = attach(model, FullConfig())
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= set(adapters.parameters())
    assert torch.equal(logits(model), before)
    tied = attach(stored_outside(folder_of("qwen2"), "fp32").model, FullConfig())
    assert tied.model.lm_head.weight is tied.model.model.embed_tokens.weight
    with pytest.raises(TopcoatError, match=r"needs floating point weights, and model.embed_tokens is stored as int8"):
        attach(stored_outside(folder_of(), "int8").model, FullConfig())


def test_a_module_to_save_named_twice_is_copied_once(load, logits):
    model = load().model
    before = logits(model)
    adapters = attach(model, LoraConfig(modules_to_save=["lm_head", "lm_head", "model.embed_tokens"]))
    assert sorted(adapters.copies) == ["lm_head", "model.embed_tokens"]
    assert torch.equal(logits(model), before)
    assert not any(isinstance(copy.base, type(copy)) for copy in adapters.copies.values())


@pytest.mark.parametrize("format", ["nf4", "int8"])
def test_full_fine_tuning_of_quantized_weights_is_refused_and_the_model_untouched(load, format):
    model = load(format=format).model
    before = state_of(model)
    with pytest.raises(TopcoatError) as caught:
        attach(model, FullConfig())
    assert (
        f"full fine-tuning needs floating point weights, and model.layers.0.self_attn.q_proj is stored as {format}"
        in (str(caught.value))
    )
    assert "use method: lora" in str(caught.value)
    assert state_of(model) == before


def test_full_fine_tuning_can_be_neither_switched_off_nor_taken_off(load):
    adapters = attach(load().model, FullConfig())
    with pytest.raises(TopcoatError, match="has no adapter to switch off"):
        adapters.switch(False)
    with pytest.raises(TopcoatError, match="has no adapter to take off"):
        adapters.detach()


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt_neox"])
def test_full_fine_tuning_is_a_plain_torch_loop_bit_for_bit(load, from_transformers, model_type):
    ids = torch.randint(3, 300, (3, 12), generator=torch.Generator().manual_seed(1))
    plain = from_transformers(model_type)
    plain.set_attn_implementation("eager")
    ours = load(model_type).model
    ours.set_attn_implementation("eager")
    adapters = attach(ours, FullConfig())
    assert adapters.count() == sum(p.numel() for p in plain.parameters())  # a tied weight counts once

    def twenty_steps(model: nn.Module, parameters: list[nn.Parameter]) -> list[float]:
        optimizer = torch.optim.AdamW(parameters, lr=1e-3)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    assert twenty_steps(ours, list(adapters.parameters().values())) == twenty_steps(plain, list(plain.parameters()))
    theirs = dict(plain.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in adapters.parameters().items())


def test_full_fine_tuning_of_a_bf16_base_keeps_float32_masters(load):
    base = load(format="bf16", compute_dtype="bf16")
    adapters = attach(base.model, FullConfig())
    assert {p.dtype for p in adapters.parameters().values()} == {torch.float32}
    p = adapters.parameters()["model.layers.0.mlp.down_proj.weight"]
    before = p.detach().clone()
    with torch.no_grad():
        for _ in range(100):
            p.add_(1e-6)  # in bf16 each of these would be rounded away
    assert_close(p.detach() - before, torch.full_like(p, 1e-4), rtol=0.05, atol=1e-7)


WHERE = [
    ({"layers_to_transform": [2]}, "adapter.layers_to_transform names no block that is there: [2]", "blocks 0 to 1"),
    ({"layers_to_transform": []}, "adapter.layers_to_transform names no block that is there: []", "blocks 0 to 1"),
    ({"exclude_modules": ["q_porj"]}, "adapter.exclude_modules has 'q_porj', which matches no linear", "has q_proj"),
    (
        {"exclude_modules": ["*x"]},
        "adapter.exclude_modules has '*x', which is no regular expression",
        "a valid pattern",
    ),
    ({"exclude_modules": [".*"]}, "the adapter's settings leave no linear layer to adapt", "exclude less"),
    ({"rank_pattern": {"q_porj": 2}}, "adapter.rank_pattern has 'q_porj', which matches none", "they are q_proj"),
    ({"alpha_pattern": {"(": 2}}, "adapter.alpha_pattern has '(', which is no regular expression", "a valid pattern"),
    (
        {"r": 33},
        "rank 33 is above model.layers.0.self_attn.k_proj's, which is (32, 64): no change of it has a rank over 32",
        "write a smaller r, or rank_pattern: {k_proj: 32}",
    ),
    ({"rank_pattern": {"q_proj": 65}}, "rank 65 is above model.layers.0.self_attn.q_proj's", "write a smaller r"),
    ({"trainable_token_indices": [3, 9999]}, "adapter.trainable_token_indices has 9999", "ids that the tokenizer has"),
    ({"trainable_token_indices": [3, 3]}, "adapter.trainable_token_indices names a token twice", "each id once"),
    (
        {"trainable_token_indices": [3], "modules_to_save": ["embed_tokens"]},
        "model.embed_tokens is trained whole by adapter.modules_to_save",
        "keep one of the two",
    ),
]


@pytest.mark.parametrize(("values", "message", "fix"), WHERE, ids=[str(row[0]) for row in WHERE])
def test_what_cannot_be_adapted_is_refused_and_the_model_untouched(load, values, message, fix):
    model = load().model
    before = state_of(model)
    with pytest.raises(TopcoatError) as caught:
        attach(model, LoraConfig(**values))
    assert message in str(caught.value)
    assert fix in str(caught.value)
    assert f"where: adapter.{next(iter(values))}" in str(caught.value)
    assert state_of(model) == before
    attach(model, LoraConfig())


def test_rows_of_the_embedding_need_an_embedding():
    with pytest.raises(TopcoatError, match="needs an input embedding, and this model names none"):
        attach(Small(), LoraConfig(r=2, trainable_token_indices=[1]))


def test_layers_and_exclusions_narrow_the_targets(load):
    config = LoraConfig(
        target_modules=["q_proj", "v_proj", "up_proj"], layers_to_transform=[1], exclude_modules=["mlp.up_proj"]
    )
    layers = attach(load().model, config).layers
    assert list(layers) == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]


def test_ranks_and_alphas_by_pattern_decide_shapes_and_scales(load):
    config = LoraConfig(r=4, lora_alpha=8, rank_pattern={"q_proj": 2, ".*layers.1.*": 6}, alpha_pattern={"mlp.*": 3})
    layers = attach(load().model, config).layers
    found = {path.removeprefix("model.layers."): (layer.lora_A.shape[0], layer.scale) for path, layer in layers.items()}
    assert found["0.self_attn.q_proj"] == (2, 4)
    assert found["1.self_attn.q_proj"] == (2, 4)  # the first pattern that matches
    assert found["1.self_attn.v_proj"] == (6, 8 / 6)
    assert found["0.mlp.up_proj"] == (4, 3 / 4)
    assert found["1.mlp.up_proj"] == (6, 3 / 6)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma3_text"])
def test_of_the_embedding_only_the_named_rows_train(load, logits, train_a_little, model_type):
    base = load(model_type)
    before = logits(base.model)
    adapters = attach(base.model, LoraConfig(r=2, trainable_token_indices=[5, 3]))
    started = logits(base.model)
    named = torch.zeros(before.shape[-1], dtype=torch.bool)
    named[[5, 3]] = base.model.config.tie_word_embeddings  # a tied head's rows are multiplied by themselves
    assert torch.equal(started[..., ~named], before[..., ~named])
    torch.testing.assert_close(started[..., named], before[..., named], rtol=1e-5, atol=1e-5)
    base.model(torch.arange(3, 20)[None]).logits.square().sum().backward()
    rows = adapters.parameters()["model.embed_tokens.token_adapter.trainable_tokens_delta"]
    assert rows.shape[0] == 2
    assert bool(rows.grad.any(1).all())
    train_a_little(adapters)
    assert not torch.allclose(logits(base.model), before, atol=1e-3)
    with adapters.off():
        assert torch.equal(logits(base.model), before)
    adapters.detach()
    assert torch.equal(logits(base.model), before)
    assert attach(base.model, LoraConfig(trainable_token_indices=[3])).rows
