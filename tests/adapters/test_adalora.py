"""AdaLoRA's layer against its definition in double precision; its files both ways with PEFT; as a plain LoRA."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from torch.testing import assert_close

from topcoat.adapters.adalora import AdaLora
from topcoat.adapters.as_lora import as_lora
from topcoat.adapters.attach import attach
from topcoat.adapters.files import CONFIG, WEIGHTS, load_adapter, save_adapter
from topcoat.adapters.settings import AdaloraConfig, DoraConfig, LoraConfig, MissConfig
from topcoat.adapters.start import Start
from topcoat.errors import TopcoatError
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import DenseConfig
from topcoat.training.ranks import rank_allocation

peft = pytest.importorskip("peft")

CONFIG_6 = AdaloraConfig(init_r=6, target_r=3, lora_alpha=9, target_modules=["q_proj", "down_proj"])
X = torch.randn(2, 7, 30, generator=torch.Generator().manual_seed(3))


def one_layer(config: AdaloraConfig = CONFIG_6) -> AdaLora:
    """A layer on a (20, 30) weight, its three factors away from their start."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(20, 30, generator=generator), torch.randn(20, generator=generator)
    base = FrozenLinear.from_dense(weight, bias, DenseConfig(format="fp32"), torch.float32)
    layer = AdaLora.build({"q_proj": base}, config, Start(2))["q_proj"]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return layer


def take_ranks(adapters, seed: int = 1, none_of: str = "") -> None:
    """Drop about half of the directions; all of those of the linears whose path ends in `none_of`."""
    generator = torch.Generator().manual_seed(seed)
    for path, layer in adapters.layers.items():
        kept = torch.rand(len(layer.kept), generator=generator) > 0.5
        kept[0] = True
        layer.keep(kept & (not none_of or not path.endswith(none_of)))


def test_values_and_gradients_are_the_definitions():
    layer = one_layer()
    x, same = X.clone().requires_grad_(), X.double().requires_grad_()
    p = {name: v.detach().double().requires_grad_() for name, v in layer.named_parameters()}
    W, b = layer.base.dense_weight(torch.float32).double(), layer.base.bias.double()
    scale = 9 / (6 + 1e-5)
    expected = same @ W.T + b + scale * ((same @ p["lora_A"].T) * p["lora_E"].T) @ p["lora_B"].T
    expected.square().sum().backward()
    found = layer(x)
    found.square().sum().backward()
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert_close(x.grad.double(), same.grad, rtol=1e-4, atol=1e-3)
    for name, parameter in layer.named_parameters():
        assert_close(parameter.grad.double(), p[name].grad, rtol=1e-4, atol=1e-5 * float(p[name].grad.abs().max()))


def test_the_distance_from_orthonormal_is_that_of_the_definition():
    layer = one_layer()
    A, B = layer.lora_A.detach().double(), layer.lora_B.detach().double()
    one = torch.eye(6, dtype=torch.float64)
    expected = [((A @ A.T - one) ** 2).sum().sqrt(), ((B.T @ B - one) ** 2).sum().sqrt()]
    assert [float(v.detach()) for v in layer.skewness()] == pytest.approx([float(v) for v in expected], rel=1e-5)
    with torch.no_grad():
        layer.lora_A.copy_(torch.linalg.qr(layer.lora_A.T)[0].T)
        layer.lora_B.copy_(torch.linalg.qr(layer.lora_B)[0])
    assert float(torch.stack(layer.skewness()).max()) < 1e-5


def test_dropout_falls_on_the_adapters_input_alone():
    layer = one_layer(CONFIG_6.model_copy(update={"lora_dropout": 0.5})).train()
    torch.manual_seed(11)
    found = layer(X)
    torch.manual_seed(11)
    dropped = torch.nn.functional.dropout(X, 0.5)
    delta = layer.merged_weight() - layer.base.dense_weight(torch.float32)
    assert_close(found, layer.base(X) + dropped @ delta.T, rtol=1e-4, atol=1e-4)
    assert torch.equal(layer.eval()(X), layer(X))


def test_a_direction_that_is_taken_away_is_zero_and_may_come_back():
    layer = one_layer()
    kept = torch.tensor([True, False, True, True, False, True])
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    layer.hide(kept)
    assert layer.rank == 6  # hidden, and not yet given up
    assert torch.equal(layer.lora_E.flatten() == 0, ~kept)
    assert torch.equal(layer.lora_A, before["lora_A"])  # so that it can come back
    assert torch.equal(layer.lora_B, before["lora_B"])
    layer.keep(kept)
    assert layer.rank == 4
    assert layer.stored()["lora_A"].shape == (4, 30)
    assert layer.stored()["lora_B"].shape == (20, 4)
    layer.keep(torch.zeros(6, dtype=torch.bool))
    assert layer.stored()["lora_A"].shape == (0, 30)
    assert not layer.changes()
    A, B = layer.as_lora()  # a LoRA of rank 0 is none
    assert (A.shape, B.shape) == ((1, 30), (20, 1))
    assert not A.any()
    assert not B.any()


@pytest.mark.parametrize("nothing_left_in", ["", "down_proj"])
def test_peft_computes_what_is_left_of_our_ranks_and_we_read_it_again(
    load, logits, from_transformers, train_a_little, tmp_path, nothing_left_in
):
    model = load().model
    adapters = attach(model, CONFIG_6)
    train_a_little(adapters)
    take_ranks(adapters, none_of=nothing_left_in)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    save_adapter(adapters, first, "tiny")
    theirs = peft.PeftModel.from_pretrained(from_transformers(), first)
    assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(theirs), logits(load().model), atol=1e-2)
    again = load().model
    loaded = load_adapter(again, first)
    assert_close(logits(again), logits(model), rtol=1e-6, atol=1e-6)  # sums without their zeros
    assert [layer.rank for layer in loaded.layers.values()] == [layer.rank for layer in adapters.layers.values()]
    save_adapter(loaded, second, "tiny")
    for file in first.iterdir():
        assert (second / file.name).read_bytes() == file.read_bytes()
    stored = safetensors.torch.load((first / WEIGHTS).read_bytes())
    rows = {path: layer.rank for path, layer in adapters.layers.items()}
    for path, rank in rows.items():
        name = f"base_model.model.{path}.lora_"
        assert [stored[name + "A"].shape[0], stored[name + "B"].shape[1], *stored[name + "E"].shape] == [rank] * 3 + [1]


def trained_by_peft(model, steps: int = 12, **changes):
    """PEFT's own run, with PEFT's own allocator."""
    values = {"init_r": 6, "target_r": 3, "tinit": 2, "tfinal": 4, "total_step": steps, "lora_alpha": 9} | changes
    config = peft.AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], **values)
    theirs = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.arange(3, 40)[None]
    for step in range(1, steps + 1):
        theirs(ids, labels=ids).loss.backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    return theirs.eval()


def test_we_compute_what_peft_has_trained_and_give_it_back(load, logits, from_transformers, tmp_path):
    theirs = trained_by_peft(from_transformers())
    theirs.save_pretrained(tmp_path / "theirs")
    pattern = json.loads((tmp_path / "theirs" / CONFIG).read_text())["rank_pattern"]
    assert sum(map(sum, pattern.values())) == 12  # target_r times four linears
    model = load().model
    adapters = load_adapter(model, tmp_path / "theirs")
    assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(model), logits(load().model), atol=1e-3)
    (tmp_path / "ours").mkdir()
    save_adapter(adapters, tmp_path / "ours", "tiny")
    ours = json.loads((tmp_path / "ours" / CONFIG).read_text())
    assert ours["rank_pattern"] == pattern
    assert {key: ours[key] for key in ("init_r", "target_r", "tinit", "tfinal", "total_step", "lora_alpha")} == {
        "init_r": 6,
        "target_r": 3,
        "tinit": 2,
        "tfinal": 4,
        "total_step": 12,
        "lora_alpha": 9,
    }
    again = peft.PeftModel.from_pretrained(from_transformers(), tmp_path / "ours")
    assert_close(logits(again), logits(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])  # the second ties its head
def test_rows_of_the_embedding_train_beside_it_in_peft_too(
    load, logits, from_transformers, train_a_little, tmp_path, model_type
):
    model = load(model_type).model
    adapters = attach(model, CONFIG_6.model_copy(update={"trainable_token_indices": [4, 30, 7]}))
    assert "model.embed_tokens.token_adapter.trainable_tokens_delta" in adapters.parameters()
    assert not any("token" in name for name in rank_allocation(adapters, 100).state())  # no rank is a row's
    train_a_little(adapters)
    take_ranks(adapters)
    for folder, written in (("adalora", adapters), ("lora", as_lora(adapters, pad=True))):
        (tmp_path / folder).mkdir()
        save_adapter(written, tmp_path / folder, "tiny")
        theirs = peft.PeftModel.from_pretrained(from_transformers(model_type), tmp_path / folder)
        assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)
        again = load(model_type).model
        load_adapter(again, tmp_path / folder)
        assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)


def test_rows_that_peft_trained_beside_its_adalora_are_read(load, logits, from_transformers, tmp_path):
    config = peft.AdaLoraConfig(
        task_type="CAUSAL_LM", init_r=6, target_r=4, total_step=10, target_modules=["q_proj"],
        trainable_token_indices=[4, 30],
    )  # fmt: skip
    theirs = peft.get_peft_model(from_transformers(), config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(6)))
    theirs.save_pretrained(tmp_path)
    model = load().model
    assert load_adapter(model, tmp_path).config.trainable_token_indices == [4, 30]
    assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("nothing_left_in", ["", "down_proj"])
def test_as_a_plain_lora_it_computes_the_same_here_and_in_peft(
    load, logits, from_transformers, train_a_little, tmp_path, pad, nothing_left_in
):
    model = load().model
    adapters = attach(model, CONFIG_6)
    train_a_little(adapters)
    take_ranks(adapters, none_of=nothing_left_in)
    ranks = {path: layer.rank for path, layer in adapters.layers.items()}
    plain = as_lora(adapters, pad=pad)
    save_adapter(plain, tmp_path, "tiny")
    assert logits(model).isfinite().all()
    again = load().model
    loaded = load_adapter(again, tmp_path)
    assert type(loaded.config) is LoraConfig
    assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)
    theirs = peft.PeftModel.from_pretrained(from_transformers(), tmp_path)
    assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)
    written = json.loads((tmp_path / CONFIG).read_text())
    assert written["peft_type"] == "LORA"
    if pad:
        assert (written["r"], written["lora_alpha"]) == (max(ranks.values()), max(ranks.values()))
        assert not written["rank_pattern"]
        assert not written["alpha_pattern"]
    else:
        found = {path: len(layer.lora_A) for path, layer in loaded.layers.items()}
        assert found == {path: max(1, rank) for path, rank in ranks.items()}


def test_miss_is_written_as_a_plain_lora_too_and_what_is_none_is_refused(load, logits, train_a_little, tmp_path):
    model = load().model
    adapters = attach(model, MissConfig(r=8))
    train_a_little(adapters)
    save_adapter(as_lora(adapters), tmp_path, "tiny")
    again = load().model
    load_adapter(again, tmp_path)
    assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)
    lora = attach(load().model, LoraConfig(r=2))
    assert as_lora(lora) is lora
    with pytest.raises(TopcoatError, match="is adapted by dora, which no LoRA computes"):
        as_lora(attach(load().model, DoraConfig(r=2)))


def test_a_lora_of_several_ranks_and_scales_is_padded_to_one_of_each(load, logits, train_a_little, tmp_path):
    model = load().model
    adapters = attach(
        # weak adapters: strong ones drawn at random make a model that magnifies what float32 rounds away
        model,
        LoraConfig(r=2, lora_alpha=1.0, rank_pattern={"q_proj": 5}, alpha_pattern={"v_proj": 0.5}, use_rslora=True),
    )
    train_a_little(adapters)
    plain = as_lora(adapters, pad=True)
    assert {len(layer.lora_A) for layer in plain.layers.values()} == {5}
    assert {layer.scale for layer in plain.layers.values()} == {1.0}
    for path, layer in plain.layers.items():
        assert_close(layer.merged_weight(), adapters.layers[path].merged_weight(), rtol=0, atol=1e-6)
    save_adapter(plain, tmp_path, "tiny")
    again = load().model
    load_adapter(again, tmp_path)
    assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)


def test_settings_that_leave_nothing_to_share_out_are_refused():
    for init_r, target_r in ((8, 8), (8, 12)):
        with pytest.raises(ValueError, match=f"target_r is {target_r}, and init_r 8 leaves no rank to take away"):
            AdaloraConfig(init_r=init_r, target_r=target_r)
    for wrong in ({"init_r": 0}, {"target_r": 0}, {"beta1": 1.0}, {"deltaT": 0}, {"orth_reg_weight": -1}):
        with pytest.raises(ValueError, match=r"greater than|less than"):
            AdaloraConfig(**wrong)


def test_a_rank_above_the_matrix_and_a_pattern_before_the_run_are_refused(load):
    with pytest.raises(TopcoatError) as caught:
        attach(load().model, AdaloraConfig(init_r=40, target_r=8))
    text = str(caught.value)
    assert "init_r 40 is above the rank of model.layers.0.self_attn.k_proj, which is (32, 64)" in text
    assert "write init_r: 32 or less, and target_r below it" in text
    pattern = {"model.layers.0.self_attn.q_proj.lora_E": [True] * 12}
    with pytest.raises(TopcoatError, match="this one is yet to find out"):
        attach(load().model, AdaloraConfig(rank_pattern=pattern))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda p: p | {"model.layers.9.x.lora_E": [True] * 6},
            "names model.layers.9.x.lora_E, and nothing is adapted",
        ),
        (lambda p: {k: v[1:] for k, v in p.items()}, "has 5 entries for model.layers.0"),
        (lambda p: {k: [True] * 6 for k in p}, "tensors have another shape"),
    ],
    ids=["unknown", "short", "other ranks"],
)
def test_a_rank_pattern_that_is_not_the_files_is_refused(load, train_a_little, tmp_path, change, said):
    adapters = attach(load().model, CONFIG_6)
    train_a_little(adapters)
    take_ranks(adapters)
    save_adapter(adapters, tmp_path, "tiny")
    written = json.loads((tmp_path / CONFIG).read_text())
    written["rank_pattern"] = change(written["rank_pattern"])
    (tmp_path / CONFIG).write_text(json.dumps(written))
    model = load().model
    with pytest.raises(TopcoatError, match=said):
        load_adapter(model, tmp_path)
