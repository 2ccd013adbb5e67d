"""Virtual tokens: what PEFT's definition says, in packed, padded and cached batches; off and away without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, MambaConfig, PreTrainedModel

from topcoat.adapters.as_lora import as_lora, require_factors
from topcoat.adapters.attach import Adapters, attach
from topcoat.adapters.prefix_tuning import Prefix
from topcoat.adapters.prompt_methods import PROMPTS
from topcoat.adapters.settings import (
    LoraConfig,
    PrefixTuningConfig,
    PromptConfig,
    PromptTuningConfig,
    PTuningConfig,
    PTuningV2Config,
)
from topcoat.adapters.virtual_tokens import NAME, virtual_tokens
from topcoat.data.batches import Batch, packed, padded
from topcoat.data.render import Example
from topcoat.data.rows import Row
from topcoat.errors import TopcoatError
from topcoat.model.attention import register
from topcoat.model.generate import generate
from topcoat.model.tiny import tiny_model, tiny_tokenizer
from topcoat.training.objectives.sft import sft

N = 5
METHODS: dict[str, PromptConfig] = {
    "prompt": PromptTuningConfig(num_virtual_tokens=N),
    "mlp": PTuningConfig(num_virtual_tokens=N, encoder_hidden_size=12),
    "lstm": PTuningConfig(num_virtual_tokens=N, encoder_hidden_size=12, encoder_reparameterization_type="LSTM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=N, encoder_hidden_size=12),
    "v2": PTuningV2Config(num_virtual_tokens=N),
}
FAMILIES = ["llama", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt_neox", "smollm3", "olmo2"]
every_method = pytest.mark.parametrize("config", METHODS.values(), ids=METHODS.keys())


def example(ids: Sequence[int]) -> Example:
    """Every token but the first is a target."""
    return Example(list(ids), list(ids), Row({}, "rows.jsonl", 1), None, None, None)


def documents(seed: int, lengths: Sequence[int]) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    return [example(torch.randint(3, 500, (n,), generator=generator).tolist()) for n in lengths]


def defined(adapters: Adapters, ids: Sequence[int]) -> Tensor:
    """Logits (T, V) of one document as the papers define them, by transformers alone, adapter off: the tokens' own
    embeddings behind the learned ones, or behind a cache that holds the learned keys and values."""
    model, prompt = adapters.model, adapters.prompt
    tokens, n = torch.tensor([list(ids)]), prompt.count
    values = prompt.values()
    with adapters.off():
        if not isinstance(prompt, Prefix):
            embedded = torch.cat([values[None], model.get_input_embeddings()(tokens)], 1)
            return model(inputs_embeds=embedded, use_cache=False).logits[0, n:]
        cache = DynamicCache(config=model.config)
        heads = prompt.heads
        for layer, pair in enumerate(values.view(n, heads.layers, 2, heads.heads, heads.width).unbind(1)):
            keys, found = pair.unbind(1)  # (n, G, K) each
            cache.update(keys.transpose(0, 1)[None], found.transpose(0, 1)[None], layer)
        positions = torch.arange(n, n + len(ids))[None]
        return model(input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True).logits[0]


def trained(model: PreTrainedModel, config: PromptConfig) -> Adapters:
    adapters = attach(model, config, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapters.parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapters


def loss_and_gradients(adapters: Adapters, batches: list[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
    parameters = adapters.parameters()
    loss = sum(sft(adapters.model, batch) for batch in batches)
    grads = torch.autograd.grad(loss, list(parameters.values()))
    return loss.detach(), dict(zip(parameters, grads, strict=True))


@pytest.mark.parametrize("config", [METHODS["prompt"], METHODS["v2"]], ids=["prompt", "v2"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_document_is_computed_as_the_papers_define_it(load, model_type, config):
    adapters = trained(load(model_type).model, config)
    ids = [7, 3, *range(40, 80)]  # past the window of 32 that two of the families slide
    with torch.no_grad():
        ours = adapters.model(torch.tensor([ids]), use_cache=False).logits[0]
        assert_close(ours, defined(adapters, ids), rtol=1e-4, atol=1e-4)


BATCHED = [("topcoat", name) for name in METHODS] + [(a, name) for a in ("sdpa", "eager") for name in ("prompt", "v2")]


@pytest.mark.parametrize(
    ("attention", "config"), [(a, METHODS[name]) for a, name in BATCHED], ids=map("-".join, BATCHED)
)
@pytest.mark.parametrize("packing", [True, False])
def test_documents_in_one_batch_give_the_loss_and_gradients_of_each_alone(load, config, attention, packing):
    model = load().model
    model.config._attn_implementation = attention
    adapters = trained(model, config)
    rows = documents(1, [9, 1, 17, 30, 2])
    together = (packed if packing else padded)(rows, range(len(rows)))
    expected, grads = loss_and_gradients(adapters, [packed([row], [0]) for row in rows])
    loss, found = loss_and_gradients(adapters, [together])
    assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    for name, grad in grads.items():
        assert_close(found[name], grad, rtol=1e-4, atol=1e-4)
    by_definition = [
        nn.functional.cross_entropy(
            defined(adapters, row.input_ids)[:-1], torch.tensor(row.input_ids[1:], dtype=torch.int64), reduction="sum"
        )
        for row in rows
    ]
    assert_close(loss, torch.stack(by_definition).sum().detach(), rtol=1e-5, atol=1e-4)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    n=st.integers(1, 9),
    name=st.sampled_from(["mlp", "v2"]),
)
def test_whatever_is_packed_is_as_if_alone(lengths, n, name):
    model = tiny_model("gemma2", 1)
    register()
    model.config._attn_implementation = "topcoat"
    adapters = trained(model, METHODS[name].model_copy(update={"num_virtual_tokens": n}))
    rows = documents(2, [*lengths, 5])
    with torch.no_grad():
        together = sft(model, packed(rows, range(len(rows))))
        alone = sum(sft(model, padded([row], [0])) for row in rows)
    assert_close(together, alone, rtol=1e-5, atol=1e-3)
    adapters.detach()


@every_method
def test_recomputed_blocks_give_the_same_gradients(load, config):
    model = load().model
    adapters = trained(model, config)
    batch = packed(documents(1, [9, 20]), range(2))
    model.train()
    loss, grads = loss_and_gradients(adapters, [batch])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again, found = loss_and_gradients(adapters, [batch])
    assert_close(again, loss, rtol=0, atol=0)
    assert all(torch.equal(found[name], grad) for name, grad in grads.items())


@every_method
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_generation_with_a_cache_is_greedy_search_by_definition(load, model_type, config):
    base = load(model_type)
    adapters = trained(base.model, config)
    prompts = [[5, 6, 7], [9], list(range(30, 65))]
    expected = []
    with torch.no_grad():
        for prompt in prompts:
            ids = list(prompt)
            for _ in range(6):
                ids.append(int(defined(adapters, ids)[-1].argmax()))
            expected.append(ids[len(prompt) :])
    assert generate(base.model, base.tokenizer, prompts, 6, set()) == expected
    assert generate(base.model, base.tokenizer, prompts, 6, set(), batch_size=1) == expected


@every_method
def test_off_gives_the_base_bit_for_bit_and_detach_leaves_no_trace(load, logits, config):
    model = load().model
    before, names = logits(model), list(model.state_dict())
    adapters = trained(model, config)
    changed = logits(model)
    assert not torch.allclose(changed, before, atol=1e-2)
    with adapters.off():
        assert torch.equal(logits(model), before)
        assert virtual_tokens(model) == 0
    assert torch.equal(logits(model), changed)
    assert virtual_tokens(model) == N
    with pytest.raises(TopcoatError, match="the model already carries an adapter"):
        attach(model, LoraConfig())
    assert adapters.detach() is model
    assert torch.equal(logits(model), before)
    assert list(model.state_dict()) == names
    assert adapters.parameters() == {}
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    attach(model, LoraConfig())


@every_method
def test_only_the_tokens_and_what_makes_them_train(load, config):
    model = load().model
    adapters = trained(model, config)
    parameters = adapters.parameters()
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in parameters.values()}
    assert all(name.startswith(f"{NAME}.") and p.dtype == torch.float32 for name, p in parameters.items())
    assert adapters.state().keys() == parameters.keys()
    _, grads = loss_and_gradients(adapters, [packed(documents(1, [9, 20]), range(2))])
    assert all(bool(grad.any()) for grad in grads.values())


@every_method
@pytest.mark.parametrize("format", ["nf4", "int8"])
def test_a_quantized_base_takes_them_in_bf16_too(load, config, format):
    base = load(format=format, compute_dtype="bf16")
    adapters = trained(base.model, config)
    loss, grads = loss_and_gradients(adapters, [packed(documents(1, [9, 20]), range(2))])
    assert bool(loss.isfinite())
    assert all(bool(grad.isfinite().all()) and grad.dtype == torch.float32 for grad in grads.values())


def test_the_counts_are_those_of_the_specification():
    """methods.md 1.2: SmolLM2-135M, 20 tokens."""
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    config = LlamaConfig(**sizes, num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    for settings_, expected in [
        (PromptTuningConfig(prompt_tuning_init="RANDOM"), 11_520),
        (PTuningV2Config(), 230_400),
        (PrefixTuningConfig(prefix_projection=False), 230_400),
    ]:
        adapters = attach(model, settings_)
        assert adapters.count() == expected
        adapters.detach()


def test_starts_follow_from_the_seed_and_touch_no_global_stream(load):
    model = load().model
    torch.manual_seed(1)
    expected = torch.rand(3)
    for config in METHODS.values():
        torch.manual_seed(1)
        starts = []
        for seed in (7, 7, 8):
            adapters = attach(model, config, seed)
            starts.append({name: p.detach().clone() for name, p in adapters.parameters().items()})
            adapters.detach()
        assert torch.equal(torch.rand(3), expected)
        assert all(torch.equal(starts[0][name], p) for name, p in starts[1].items())
        assert not any(torch.equal(starts[0][name], p) for name, p in starts[2].items())


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])  # the second scales what it looks up
def test_a_start_from_text_or_vocabulary_is_rows_of_the_embedding(load, model_type):
    base = load(model_type)
    tokenize = lambda text: base.tokenizer(text)["input_ids"]  # noqa: E731
    table = base.model.get_input_embeddings()
    for n in (3, 40):
        config = PromptTuningConfig(
            num_virtual_tokens=n, prompt_tuning_init="TEXT", prompt_tuning_init_text="Say it in rhyme."
        )
        adapters = attach(base.model, config, tokenize=tokenize)
        ids = tokenize("Say it in rhyme.")
        wanted = table(torch.tensor([ids[i % len(ids)] for i in range(n)]))
        assert torch.equal(adapters.prompt.values(), wanted)
        adapters.detach()
    drawn = attach(base.model, PromptTuningConfig(num_virtual_tokens=40))
    everything = table(torch.arange(512))
    assert all(bool((everything == row).all(1).any()) for row in drawn.prompt.values())
    drawn.detach()
    normal = attach(base.model, PromptTuningConfig(num_virtual_tokens=200, prompt_tuning_init="RANDOM")).prompt.values()
    assert abs(float(normal.detach().std()) - 1) < 0.05


def test_a_zero_prefix_is_at_zero_and_still_dilutes_attention(load, logits):
    model = load().model
    before = logits(model)
    adapters = attach(model, PTuningV2Config(init_weights="zero"))
    assert not adapters.prompt.values().any()
    assert not torch.allclose(logits(model), before, atol=1e-3)


def test_the_network_drops_only_in_training(load, logits):
    model = load().model
    config = METHODS["lstm"].model_copy(update={"encoder_dropout": 0.5})
    adapters = attach(model, config)
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))
    stored = adapters.prompt.stored()
    assert adapters.prompt.training  # it was only measured without
    model.eval()
    with torch.no_grad():
        assert torch.equal(stored["prompt_embeddings"], adapters.prompt.values())


def test_a_later_forward_without_tokens_of_its_own_does_not_take_the_last_ones_prefix(load, logits):
    model = load().model
    adapters = trained(model, METHODS["v2"])
    batch = packed(documents(1, [9, 20]), range(2))
    expected = logits(model)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(ids, past_key_values=cache, use_cache=True)
        assert cache.get_seq_length() == N + 3
    sft(model, batch)  # with gradients: its prefix stays at hand for blocks that run again
    with torch.no_grad():
        following = model(ids[:, :1], past_key_values=cache, use_cache=True).logits[0, 0]
        assert_close(following, defined(adapters, [5, 6, 7, 5])[-1], rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model), expected)


MAMBA = MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, state_size=4)
REFUSED = [
    (
        lambda: attach(nn.Sequential(nn.Linear(3, 4)), PTuningV2Config()),
        "Sequential is no language model of transformers that virtual tokens could stand before",
        "method: lora",
    ),
    (
        lambda: attach(AutoModelForCausalLM.from_config(MAMBA), PTuningV2Config()),
        "a prefix does not fit this model: MambaForCausalLM has no attention",
        "write method: prompt_tuning or p_tuning",
    ),
    (
        lambda: attach(tiny_model("llama"), PromptTuningConfig(prompt_tuning_init="TEXT", prompt_tuning_init_text="a")),
        "prompt_tuning_init: TEXT needs a tokenizer",
        "give attach one: tokenize=...",
    ),
    (
        lambda: attach(
            tiny_model("llama"),
            PromptTuningConfig(prompt_tuning_init="TEXT", prompt_tuning_init_text=" "),
            tokenize=lambda text: [],
        ),
        "adapter.prompt_tuning_init_text is ' ', which has no tokens",
        "write the task in words",
    ),
]


@pytest.mark.parametrize(("call", "what", "fix"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_is_refused_with_a_way_out(call, what, fix):
    with pytest.raises(TopcoatError) as caught:
        call()
    assert what in str(caught.value)
    assert fix in str(caught.value)


def test_a_layer_that_asks_no_cache_is_named_and_not_passed_over(load):
    model = load().model
    adapters = attach(model, PTuningV2Config())
    attention = model.model.layers[1].self_attn
    attention.forward = lambda *args, **kwargs: (torch.zeros_like(kwargs["hidden_states"]), None)
    with pytest.raises(TopcoatError, match=r"a prefix does not fit this model: its layers \[1\] asked no cache"):
        model(torch.tensor([[3, 4]]), use_cache=False)
    del attention.forward
    adapters.detach()


def test_keys_of_another_shape_are_named(load):
    adapters = attach(load().model, PTuningV2Config())
    adapters.prompt.heads = type(adapters.prompt.heads)(2, 4, 8)
    with pytest.raises(TopcoatError, match="layer 0 has 2 x 16 keys or values a token, the others 4 x 8"):
        adapters.model(torch.tensor([[3, 4]]), use_cache=False)


def test_what_needs_a_change_of_weights_is_refused(load):
    adapters = attach(load().model, PTuningV2Config())
    with pytest.raises(TopcoatError) as caught:
        adapters.require_weights("GGUF adapter")
    assert str(caught.value) == (
        "p_tuning_v2 adds virtual tokens before the text and changes no weight, so there is no GGUF adapter\n"
        "  where: adapter.method\n"
        "  fix:   use the adapter folder as it is: topcoat chat and PEFT read it; or train with method: lora"
    )
    gguf = partial(require_factors, target="gguf-lora")
    for made, refused in (("LoRA", as_lora), ("LoRA for gguf-lora", gguf)):
        with pytest.raises(TopcoatError, match=f"changes no weight, so there is no {made}"):
            refused(adapters)
    attach(tiny_model("llama"), LoraConfig()).require_weights("GGUF adapter")


def test_a_prompt_that_leaves_the_virtual_tokens_no_position_is_refused(load):
    base = load()
    attach(base.model, PTuningV2Config())
    with pytest.raises(TopcoatError, match="prompt 0 has 492 tokens; the model takes 1 to 491"):
        generate(base.model, tiny_tokenizer(), [[5] * 492], 1, set())
    assert len(generate(base.model, tiny_tokenizer(), [[5] * 490], 9, set())[0]) == 2  # up to the last position


def test_every_method_is_tested_here():
    assert {config.method for config in METHODS.values()} == set(PROMPTS)
