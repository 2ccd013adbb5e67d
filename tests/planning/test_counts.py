"""The plan of a model that is not there and the bill of the one that is loaded count the same, in every family."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter

from topcoat.adapters.attach import attach
from topcoat.adapters.methods import METHODS
from topcoat.adapters.prompt_methods import PROMPTS
from topcoat.adapters.settings import AdaloraConfig, Adapter, FullConfig, IecConfig, LoraConfig, PTuningV2Config
from topcoat.errors import TopcoatError
from topcoat.kernels.recompute import LADDER
from topcoat.model.attention import register
from topcoat.model.blocks import LAYOUTS
from topcoat.model.fill import block_linears
from topcoat.model.fuse import fuse
from topcoat.model.tiny import TINY_TYPES, save_tiny, tiny_config, tiny_model
from topcoat.planning.architecture import KINDS, architecture_of
from topcoat.planning.counts import counts_of
from topcoat.planning.devices import DEVICES
from topcoat.planning.estimate import estimate
from topcoat.planning.loaded import loaded_counts
from topcoat.planning.request import Request
from topcoat.planning.sizes import Setup, bill_of
from topcoat.quant.linear import FrozenLinear
from topcoat.quant.settings import DenseConfig, Int8Config, IntConfig, Nf4Config
from topcoat.training.settings import TrainSettings

CONFIGS = [
    LoraConfig(r=4),
    LoraConfig(r=2, target_modules=["q_proj", "down_proj"]),
    LoraConfig(r=4, modules_to_save=["lm_head"]),
    AdaloraConfig(init_r=5, target_r=3),
    IecConfig(r=4),
    LoraConfig(r=4, init_lora_weights="olora"),
    LoraConfig(r=4, init_lora_weights="pissa_niter_2", freeze_lora_a=True),
    FullConfig(),
]


def setup(**changes) -> Setup:
    return Setup(**{"tokens": 96, "rows": 64, "element_bytes": 4, "policies": ("block", "none")} | changes)


@pytest.mark.parametrize("name", TINY_TYPES)
def test_a_config_says_how_many_parameters_its_model_has(name):
    model = tiny_model(name)
    assert architecture_of(model.config.to_dict(), name).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("config", CONFIGS, ids=["all", "two", "head", "adalora", "iec", "olora", "pissa-fa", "full"])
@pytest.mark.parametrize("name", TINY_TYPES)
def test_a_plan_from_the_config_is_the_bill_of_the_loaded_model(name, config):
    register()
    model = tiny_model(name)
    architecture = architecture_of(model.config.to_dict(), name)
    if isinstance(config, LoraConfig) and config.modules_to_save and architecture.tied:
        pytest.skip("a tied head is not trained alone")
    if isinstance(config, LoraConfig) and config.target_modules != "all-linear" and name in ("gpt_neox", "phi3"):
        config = config.model_copy(update={"target_modules": ["dense" if name == "gpt_neox" else "down_proj"]})
    model.config._attn_implementation = "topcoat"
    adapters = attach(model, config)
    fused = "trains whole" if isinstance(config, FullConfig) else fuse(model, ["none", "none"])
    fast = None if isinstance(fused, str) else fused
    assert (fast is not None) == (not isinstance(config, FullConfig) and architecture.by_hand)
    loaded = loaded_counts(model, adapters.parameters(), fast)
    planned = counts_of(architecture, config, DenseConfig(format="fp32"))
    assert planned == loaded
    assert bill_of(planned, setup()) == bill_of(loaded, setup())


@pytest.mark.parametrize("stored", [Nf4Config(), Nf4Config(double_quant=False), Int8Config(), DenseConfig()], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt_neox"])
def test_weights_are_counted_as_they_are_stored(name, stored, tmp_path):
    from topcoat.model.load import load_model
    from topcoat.model.settings import ModelSettings

    path = str(save_tiny(tmp_path / name, name))
    base = load_model(ModelSettings(path=path, quantization=stored, compute_dtype="fp32", device="cpu"))
    adapters = attach(base.model, LoraConfig(r=4))
    architecture = architecture_of(base.model.config.to_dict(), name)
    planned = counts_of(architecture, LoraConfig(r=4), stored, by_hand=False)
    assert planned == loaded_counts(base.model, adapters.parameters())


OWN = {"miss": {"r": 8}, "qalora": {"r": 2}}
EVERY = [(method, OWN.get(method, {})) for method in METHODS]
EVERY += [("qalora", {"r": 2, "freeze_lora_a": True}), ("dora", {"r": 4, "freeze_lora_a": True})]
EVERY += [("lora", {"r": 4, "init_lora_weights": "pissa", "rank_pattern": {"q_proj": 6}})]


@pytest.mark.parametrize(("method", "own"), EVERY)
def test_every_method_is_counted_as_it_is_attached(method, own):
    config = TypeAdapter(Adapter).validate_python({"method": method} | own)
    model = tiny_model("llama")
    if method == "qalora":  # stands on integers only
        for path, linear in block_linears(model).items():
            frozen = FrozenLinear.from_dense(linear.weight, linear.bias, IntConfig(), torch.float32)
            model.set_submodule(path, frozen)
    adapters = attach(model, config)
    planned = counts_of(architecture_of(model.config.to_dict(), "x"), config, DenseConfig(format="fp32"), by_hand=False)
    loaded = loaded_counts(model, adapters.parameters())
    assert (planned.trained, planned.held, planned.scored) == (loaded.trained, loaded.held, loaded.scored)
    assert planned.rest == loaded.rest


PROMPT_CONFIGS = {
    "prompt_tuning": [{}],
    "p_tuning": [{}, {"encoder_reparameterization_type": "LSTM", "encoder_num_layers": 3, "encoder_hidden_size": 5}],
    "prefix_tuning": [{}, {"encoder_hidden_size": 7}, {"prefix_projection": False}],
    "p_tuning_v2": [{"num_virtual_tokens": 3}],
}


@pytest.mark.parametrize(("method", "own"), [(method, own) for method, some in PROMPT_CONFIGS.items() for own in some])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_neox"])
def test_virtual_tokens_are_counted_as_they_are_attached(method, own, name):
    assert set(PROMPT_CONFIGS) == set(PROMPTS)
    config = TypeAdapter(Adapter).validate_python({"method": method} | own)
    model = tiny_model(name)
    adapters = attach(model, config)
    planned = counts_of(architecture_of(model.config.to_dict(), "x"), config, DenseConfig(format="fp32"), by_hand=False)
    assert planned.trained == loaded_counts(model, adapters.parameters()).trained


def test_a_plan_computes_the_positions_of_virtual_tokens():
    request = Request(
        architecture_of(tiny_model("llama").config.to_dict(), "x"),
        PTuningV2Config(num_virtual_tokens=10),
        None,
        TrainSettings(batch_size=4),
        "fp32",
        max_length=50,
        device=DEVICES[0],
        budget_bytes=2**40,
    )
    plain = replace(request, adapter=LoraConfig())
    assert (plain.tokens, request.tokens) == (4 * 50, 4 * 60)
    assert request.positions_a_token == 1.2
    assert request.step_tokens == plain.step_tokens  # of text
    assert "merge" not in estimate(request).phases


@pytest.mark.parametrize("changes", [{"rank_pattern": {"q_proj": 8}}, {"layers_to_transform": [1]}], ids=str)
def test_ranks_and_layers_of_their_own_are_counted(changes):
    config = LoraConfig(r=4, **changes)
    model = tiny_model("llama")
    adapters = attach(model, config)
    planned = counts_of(architecture_of(model.config.to_dict(), "x"), config, DenseConfig(format="fp32"), by_hand=False)
    assert planned.trained == loaded_counts(model, adapters.parameters()).trained


def test_linears_in_other_formats_are_counted_so(tmp_path):
    from topcoat.model.load import load_model
    from topcoat.model.settings import ModelSettings

    stored = Nf4Config(overrides={"*.down_proj": "int8"})
    path = str(save_tiny(tmp_path / "llama", "llama"))
    base = load_model(ModelSettings(path=path, quantization=stored, compute_dtype="fp32", device="cpu"))
    adapters = attach(base.model, LoraConfig(r=4))
    architecture = architecture_of(base.model.config.to_dict(), "x")
    planned = counts_of(architecture, LoraConfig(r=4), stored, by_hand=False)
    assert planned == loaded_counts(base.model, adapters.parameters())


def test_a_plugin_s_weight_is_its_largest_tensor_whatever_its_name(tmp_path):
    from topcoat.model.load import load_model
    from topcoat.model.settings import ModelSettings

    path = str(save_tiny(tmp_path / "llama", "llama"))
    base = load_model(ModelSettings(path=path, quantization=Int8Config(), compute_dtype="fp32", device="cpu"))
    adapters = attach(base.model, LoraConfig(r=4))
    known = loaded_counts(base.model, adapters.parameters())
    for module in base.model.modules():
        if isinstance(module, FrozenLinear):
            state = module.weight_state
            state.tensors = {f"part {at}": tensor for at, tensor in enumerate(reversed(state.tensors.values()))}
    assert loaded_counts(base.model, adapters.parameters()) == known


def test_the_families_by_hand_are_those_of_the_hand_written_blocks():
    assert {name for name, kind in KINDS.items() if kind.by_hand} == set(LAYOUTS)


@pytest.mark.parametrize("policy", LADDER)
def test_recomputing_more_never_costs_more(policy):
    counts = counts_of(architecture_of(tiny_config("llama").to_dict(), "x"), LoraConfig(), Nf4Config())
    more = bill_of(counts, setup(policies=("none",) * 2)).lines
    less = bill_of(counts, setup(policies=(policy,) * 2)).lines
    saved = [next(line.bytes for line in lines if line.name == "saved activations") for lines in (less, more)]
    assert saved[0] <= saved[1]


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gemma"])
def test_a_mixture_has_all_its_experts_and_a_token_passes_a_few(kind):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"num_hidden_layers": 3, "vocab_size": 128, "head_dim": 16}
    experts = {"mixtral": {"num_local_experts": 4}, "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 32}}
    config = AutoConfig.for_model(kind, **sizes, **experts.get(kind, {}), num_experts_per_tok=2)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    architecture = architecture_of(config.to_dict(), kind)
    assert architecture.parameters == sum(p.numel() for p in model.parameters())
    if kind != "gemma":
        width = 96 if kind == "mixtral" else 32
        attention = 2 * 64 * 64 + 2 * 64 * 32
        assert architecture.active_linear_numbers == 3 * (attention + 2 * 3 * 64 * width)


def test_an_unknown_architecture_is_taken_for_a_llama_and_says_so():
    facts = tiny_config("llama").to_dict() | {"model_type": "marvel"}
    known = architecture_of(tiny_config("llama").to_dict(), "x")
    found = architecture_of(facts, "x")
    assert found.parameters == known.parameters
    assert found.assumed == ("marvel is not among the known architectures: taken for a Llama",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": -3}, "num_hidden_layers is -3, and must be a whole number from 1 to 512"),
        ({"hidden_size": "big"}, "hidden_size is big"),
        ({"vocab_size": 10**15}, "vocab_size is 1000000000000000"),
        ({"num_attention_heads": None}, "the config does not say num_attention_heads"),
        ({"num_key_value_heads": 3}, "4 heads of 16 with 3 key heads cannot be a model of hidden size 64"),
        ({"head_dim": None, "num_attention_heads": 5, "num_key_value_heads": 5}, "5 heads of 12 with 5 key heads"),
        ({"head_dim": None, "num_attention_heads": 128}, "128 heads of 1 with 2 key heads cannot be a model"),
        ({"head_dim": 15}, "4 heads of 15 with 2 key heads cannot be a model"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is false, and must be true or false"),
        ({"attention_bias": 1}, "attention_bias is 1, and must be true or false"),
        ({"model_type": ["llama"]}, "model_type is ['llama'], and must be a name"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers is 1000000000000000000000000000000"),
        ({"hidden_size": float("nan")}, "hidden_size is nan"),
        (
            {"num_hidden_layers": 512, "hidden_size": 2**20, "intermediate_size": 2**24, "head_dim": 2**18},
            "these sizes make 2.9e+16 parameters, more than any model has",
        ),
    ],
)
def test_impossible_sizes_are_refused_by_name(change, said):
    with pytest.raises(TopcoatError) as caught:
        architecture_of(tiny_config("llama").to_dict() | {"head_dim": 16} | change, "config.json")
    assert said in str(caught.value)
    assert "fetch the file again" in str(caught.value)


def test_what_a_known_kind_should_say_and_does_not_is_unproved():
    facts = tiny_config("mistral").to_dict() | {"num_key_value_heads": None, "intermediate_size": None}
    found = architecture_of(facts, "config.json")
    assert found.assumed == (
        f"the config does not say intermediate_size: {found.mlp:,} is taken",
        f"the config does not say num_key_value_heads: {found.kv_heads:,} is taken",
    )
    assert not architecture_of(tiny_config("llama").to_dict() | {"num_key_value_heads": None}, "config.json").assumed
