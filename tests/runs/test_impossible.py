"""What a model's shapes rule out is refused alike by a plan and by a run, and the run loads nothing for it."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from topcoat.errors import TopcoatError
from topcoat.planning.possible import require_possible
from topcoat.recipe.load import recipe_from_dict
from topcoat.runs import rounding
from topcoat.runs.planning import plan
from topcoat.runs.run import run


@pytest.mark.parametrize(
    ("model", "adapter", "what"),
    [
        ({}, {"r": 40}, "rank 40 is above k_proj's, which is (32, 64)"),
        ({}, {"method": "adalora", "init_r": 40}, "init_r 40 is above the rank of k_proj, which is (32, 64)"),
        ({}, {"method": "miss", "r": 40}, "rank 40 is above k_proj's"),
        ({}, {"trainable_token_indices": [10**6]}, "has 1000000, and the embedding ends at"),
        ({}, {"target_modules": ["q_porj"]}, "adapter.target_modules matched no linear layer: ['q_porj']"),
        ({"format": "int4", "group_size": 256}, {}, "group_size 256 does not divide rows of 64 weights"),
        ({"format": "gptq", "group_size": 128}, {}, "group_size 128 does not divide rows of 64 weights"),
        ({"format": "nf4", "overrides": {"*.dwn_proj": "int8"}}, {}, "matched no linear layer: ['*.dwn_proj']"),
        (
            {"format": "int4"},
            {"method": "qalora", "r": 3},
            "rank 3 is above q_proj's, which has 2 groups of 32 in a row",
        ),
        (
            {"format": "nf4", "overrides": {"lm_head": "int8", "embed_tokens": "int8"}},
            {"trainable_token_indices": [3]},
            "trains rows of model.embed_tokens, and model.embed_tokens is stored as int8",
        ),
    ],
)
def test_plan_and_train_refuse_in_the_same_words_and_load_nothing(tiny_recipe, monkeypatch, model, adapter, what):
    def loaded(*asked):
        raise AssertionError("the model was loaded")

    values = tiny_recipe(model={"quantization": model} if model else {})
    recipe = recipe_from_dict(values | {"adapter": {"method": "lora"} | adapter})
    monkeypatch.setattr(rounding, "load_model", loaded)
    for ask in (lambda: run(recipe), lambda: plan(recipe, device="rtx4090")):
        with pytest.raises(TopcoatError) as caught:
            ask()
        assert what in str(caught.value)


def test_a_plain_checkpoint_may_be_kept_as_it_is_stored(tiny_recipe):
    values = tiny_recipe(model={"quantization": {"format": "stored"}}, train={"max_steps": 1})
    recipe = recipe_from_dict(values)
    assert plan(recipe, device="rtx4090").estimate.fits
    assert run(recipe).steps == 1
    assert plan("llama-3.1-8b", ["model.quantization.format=stored"], device="h100").estimate.peak_bytes > 15e9
    with pytest.raises(TopcoatError, match="only loading it says which"):
        plan("unsloth/llama-3.1-8b-bnb-4bit", ["model.quantization.format=stored"], device="h100")


ADAPTERS = st.one_of(
    st.fixed_dictionaries(
        {"init_lora_weights": st.sampled_from([True, "gaussian", "pissa", "pissa_niter_4", "olora", "loftq", "eva"])},
        optional={"r": st.sampled_from([4, 64]), "modules_to_save": st.just(["embed_tokens"])},
    ),
    st.sampled_from([{"method": name} for name in ("full", "dora", "adalora", "miss", "vera", "ia3", "prompt_tuning")]),
    st.just({"method": "qalora", "r": 4}),
)
ENDS = {"lm_head": "int8", "embed_tokens": "int8"}
STORED = st.sampled_from(
    [
        None,
        {"format": "nf4", "block_size": 128},
        {"format": "int4"},
        {"format": "int8", "overrides": {"*.down_proj": "nf4"}},
        {"format": "nf4-icq", "block_size": 32, "overrides": ENDS},
        {"format": "gptq", "group_size": 64},
        {"format": "stored"},
    ]
)
TRAIN = st.fixed_dictionaries(
    {}, optional={"optimizer": st.sampled_from(["adamw", "paged_adamw"]), "objective": st.sampled_from(["sft", "dpo"])}
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(adapter=ADAPTERS, stored=STORED, train=TRAIN, budget=st.sampled_from(["1GiB", "2GiB", "5GiB", "16GiB"]))
def test_what_a_plan_suggests_is_never_refused(tiny_recipe, adapter, stored, train, budget):
    values = tiny_recipe(model={"path": "llama-3.2-1b", "quantization": stored}, train=train) | {"adapter": adapter}
    try:
        made = plan(recipe_from_dict(values, check_files=False), device="rtx3060", budget=budget)
    except TopcoatError:
        return  # a recipe that is refused itself has no suggestions
    architecture, found = made.estimate.request.architecture, made.found
    for candidate in filter(None, [*found.fastest, found.smallest_change, found.smallest]):
        overrides = " ".join(candidate.changes).split()
        recipe = recipe_from_dict(values, overrides=overrides, check_files=False)
        require_possible(architecture, recipe.adapter, recipe.model.quantization)
        request = candidate.estimate.request
        assert (recipe.adapter, recipe.model.quantization) == (request.adapter, request.quantization)
