"""Settings of the frozen weights that cannot be meant: refused from the recipe alone, with value and way out."""

import pytest

from topcoat.errors import TopcoatError
from topcoat.recipe.load import recipe_from_dict


def refusal(tiny_recipe, quantization):
    with pytest.raises(TopcoatError) as caught:
        recipe_from_dict(tiny_recipe(model={"quantization": quantization}), "a test")
    assert len(caught.value.problems) == 1, caught.value
    return caught.value.problems[0]


@pytest.mark.parametrize(
    ("quantization", "what", "fix"),
    [
        (
            {"format": "int8", "double_quant": True},
            "double_quant is a setting of format nf4 or nf3 or nf4-icq or fp4; this recipe has format int8",
            "take it out",
        ),
        ({"format": "int4", "double_quant": True}, "this recipe has format int4", "take it out"),
        ({"format": "int4", "group_size": 48}, "group_size is 48; expected one of 16, 32, 64, 128, 256", "must divide"),
        ({"format": "nf4", "block_size": 48}, "block_size is 48; expected one of 32, 64", "leave it out"),
        ({"format": "nf4", "rounding": "gptq"}, "rounding is a setting of format int4 or gptq", "take it out"),
        ({"format": "gptq", "bits": 5}, "bits is 5; expected one of 2, 3, 4, 8", "leave it out"),
        ({"format": "int4", "calibration_rows": 0}, "calibration_rows is 0; expected a whole number", "leave it out"),
        ({"format": "stored", "bits": 4}, "bits is a setting of format gptq", "take it out"),
        ({"format": "int5"}, "format is 'int5'; expected one of", "did you mean int8 or int4"),
        (
            {"format": "nf4", "overrides": {"down_proj": {"format": "int8", "double_quant": True}}},
            "which sets double_quant, and int8 has no such setting",
            "write a format's name",
        ),
        (
            {"format": "nf4", "overrides": {"down_proj": "int5"}},
            "is 'int5', which is no number format: formats are 'bf16', 'fp16'",
            "did you mean int8 or int4",
        ),
        (
            {"format": "nf4", "overrides": {"down_proj": "gold"}},
            "is 'gold', which is no number format: formats are 'bf16', 'fp16'",
            "such as int8",
        ),
        (
            {"format": "nf4", "overrides": {"down_proj": {"format": "int4", "group_size": 48}}},
            "which sets group_size to 48, and int4 takes 16, 32, 64",
            "write a format's name",
        ),
        (  # the one that is right is not blamed for the other
            {"format": "nf4", "overrides": {"*.down_proj": "int8", "v_proj": "intt8"}},
            "v_proj is 'intt8', which is no number format",
            "did you mean int8",
        ),
        (
            {"format": "nf4", "overrides": {"v_proj": {"format": "int8", "overrides": {"x": "nf4"}}}},
            "has overrides of its own",
            "write a format's name",
        ),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused(tiny_recipe, quantization, what, fix):
    problem = refusal(tiny_recipe, quantization)
    assert what in problem.what
    assert fix in problem.fix


@pytest.mark.parametrize(
    "quantization",
    [
        {"format": "int4", "rounding": "gptq", "calibration_rows": 16},
        {"format": "gptq", "bits": 8, "group_size": -1, "sym": True},
        {"format": "stored", "overrides": {"lm_head": "int8"}},
        {"format": "nf4", "overrides": {"*.down_proj": {"format": "int4", "rounding": "gptq"}}},
    ],
    ids=str,
)
def test_settings_that_can_be_meant_are_taken(tiny_recipe, quantization):
    recipe = recipe_from_dict(tiny_recipe(model={"quantization": quantization}), "a test")
    assert recipe.model.quantization.format == quantization["format"]
