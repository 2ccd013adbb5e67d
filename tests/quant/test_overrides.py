"""Mixed precision by module pattern."""

import pytest
from pydantic import ValidationError

from topcoat.errors import TopcoatError
from topcoat.quant.overrides import formats_by_path, matches
from topcoat.quant.settings import Int8Config, IntConfig, Nf4Config, read_config

PATHS = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]


def formats(overrides):
    found = formats_by_path(Nf4Config(overrides=overrides), PATHS)
    return [found[path].config.format for path in PATHS]


@pytest.mark.parametrize(
    "pattern", ["*.down_proj", "down_proj", "mlp.down_proj", "*mlp*", "model.layers.*.mlp.down_proj"]
)
def test_a_pattern_picks_the_linears_it_fits(pattern):
    assert formats({pattern: "int8"}) == ["nf4", "int8", "int8"]


def test_the_first_pattern_that_fits_counts():
    assert formats({"layers.1.*": "bf16", "down_proj": "int8"}) == ["nf4", "int8", "bf16"]


def test_an_override_may_have_settings():
    found = formats_by_path(Nf4Config(overrides={"down_proj": {"format": "int2", "group_size": 64}}), PATHS)
    assert found[PATHS[1]].config == IntConfig(format="int2", group_size=64)
    assert found[PATHS[1]] is found[PATHS[2]]


def test_part_of_a_name_is_no_match():
    assert not matches("proj", "a.down_proj")


def test_a_pattern_that_fits_nothing_is_refused_with_the_names_there_are():
    with pytest.raises(TopcoatError, match=r"matched no linear layer: \['up_proj'\]") as caught:
        formats({"up_proj": "int8"})
    assert "down_proj, q_proj" in caught.value.problems[0].fix


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nf5", "is no number format: formats are"),
        ({"format": "int8", "double_quant": True}, "sets double_quant, and int8 has no such setting"),
        ({"format": "int4", "group_size": 48}, "sets group_size to 48, and int4 takes 16, 32"),
        ({"group_size": 32}, "is no number format"),
    ],
    ids=str,
)
def test_what_is_no_format_is_refused_when_the_recipe_is_read(value, said):
    with pytest.raises(ValidationError, match=said):
        Nf4Config(overrides={"down_proj": value})


def test_overrides_do_not_nest():
    with pytest.raises(ValidationError, match="overrides of its own"):
        Nf4Config(overrides={"down_proj": {"format": "int8", "overrides": {"x": "nf4"}}})


def test_a_name_alone_is_a_format_with_its_defaults():
    assert read_config("int8") == Int8Config()
