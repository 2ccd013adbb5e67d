"""Names and patterns -> linears; what matches nothing is an error with the names that would."""

from __future__ import annotations

import pytest

from topcoat.adapters.attach import attach
from topcoat.adapters.patterns import find_targets
from topcoat.adapters.settings import LoraConfig
from topcoat.adapters.targets import adaptable_linears
from topcoat.errors import TopcoatError

PATHS = [
    f"model.layers.{i}.{name}" for i in range(12) for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
]


def test_all_linear_is_every_linear_in_the_order_of_the_model():
    assert find_targets(PATHS, "all-linear") == PATHS


def test_a_name_is_the_whole_last_part_of_a_path():
    assert find_targets(PATHS, ["q_proj"]) == [path for path in PATHS if path.endswith(".q_proj")]
    with pytest.raises(TopcoatError):
        find_targets(PATHS, ["proj"])


def test_several_parts_and_whole_paths_are_names_too():
    assert find_targets(PATHS, ["mlp.down_proj"]) == [path for path in PATHS if path.endswith("down_proj")]
    assert find_targets(PATHS, ["model.layers.1.self_attn.q_proj"]) == ["model.layers.1.self_attn.q_proj"]
    assert find_targets(PATHS, ["1.mlp.down_proj"]) == ["model.layers.1.mlp.down_proj"]  # and not those of layer 11


def test_anything_else_is_a_regular_expression_over_the_whole_path():
    found = find_targets(PATHS, [r".*layers\.[01]\.mlp\..*"])
    assert found == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    with pytest.raises(TopcoatError):
        find_targets(PATHS, [r"layers\.[01]\.mlp"])


def test_the_order_is_the_models_and_a_linear_named_twice_comes_once():
    assert find_targets(PATHS, ["v_proj", "q_proj", r".*q_proj"]) == [p for p in PATHS if "self_attn" in p]


def test_a_pattern_that_matches_nothing_is_an_error_even_beside_one_that_does(load):
    model = load().model
    config = LoraConfig(target_modules=["q_proj", "q_porj", "v_proj "])
    with pytest.raises(TopcoatError) as caught:
        attach(model, config)
    assert str(caught.value) == (
        "adapter.target_modules matched no linear layer: ['q_porj', 'v_proj ']\n"
        "  where: adapter.target_modules\n"
        "  fix:   this model has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj; "
        "or write target_modules: all-linear"
    )


def test_a_head_that_is_named_is_told_where_it_can_train():
    with pytest.raises(TopcoatError) as caught:
        find_targets(PATHS, ["lm_head", "q_porj"])
    assert caught.value.problems[0].fix.endswith(
        "; lm_head can train whole, in adapter.modules_to_save, if untied and not quantized"
    )


def test_no_pattern_at_all_is_an_error():
    with pytest.raises(TopcoatError, match=r"matched no linear layer: \[\]"):
        find_targets(PATHS, [])


def test_what_is_no_regular_expression_is_said_to_be_none():
    with pytest.raises(TopcoatError) as caught:
        find_targets(PATHS, ["*proj"])
    assert "has '*proj', which is no regular expression: nothing to repeat" in str(caught.value)
    assert "write a module name such as q_proj" in str(caught.value)


def test_a_model_without_linears_says_so():
    with pytest.raises(TopcoatError, match="the model has no linear layer to adapt"):
        find_targets([], "all-linear")


@pytest.mark.parametrize(
    ("model_type", "roles"),
    [
        ("llama", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        ("phi3", ["o_proj", "qkv_proj", "gate_up_proj", "down_proj"]),
        ("gpt_neox", ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
        ("olmo2", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
    ],
)
def test_the_linears_of_an_architecture_are_all_of_its_blocks_and_not_the_head(load, model_type, roles):
    paths = adaptable_linears(load(model_type).model)
    assert {path.rsplit(".", 1)[-1] for path in paths} == set(roles)
    assert len(paths) == 2 * len(roles)
