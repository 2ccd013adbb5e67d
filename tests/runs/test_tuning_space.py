"""What may be searched over, as it is typed."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topcoat.errors import TopcoatError
from topcoat.recipe.load import load_recipe, recipe_from_dict
from topcoat.runs.tuning_range import narrowed, rates, smoothed
from topcoat.runs.tuning_space import (
    SPACE,
    Choices,
    Range,
    at_edge,
    fitting,
    own_values,
    parse_space,
    suggest,
    winner_text,
    with_values,
)
from topcoat.runs.tuning_state import parse_seconds
from topcoat.runs.tuning_trial import rungs_of


def recipe_of(**sections: Any):
    values = {"model": "smollm2-135m", "data": "t.jsonl", "output": "o", **sections}
    return recipe_from_dict(values, check_files=False)


class First:
    """A trial that takes the lowest of everything."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return low

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return low

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return choices[0]


@pytest.mark.parametrize(
    ("over", "space"),
    [
        ("learning_rate,r", {"learning_rate": Range(1e-5, 1e-2, True), "r": Choices((4, 8, 16, 32, 64))}),
        ("train.learning_rate=1e-4..1e-3", {"learning_rate": Range(1e-4, 1e-3, True)}),
        ("lr=1e-4/1e-3", {"learning_rate": Choices((1e-4, 1e-3))}),
        ("lora_r=8..64", {"r": Range(8, 64, True, True)}),
        ("warmup=0..0.1", {"warmup_ratio": Range(0, 0.1)}),
        ("use_rslora", {"use_rslora": Choices((False, True))}),
        ("use_rslora=true", {"use_rslora": Choices((True,))}),
        ("num_epochs=1|2", {"epochs": Choices((1.0, 2.0))}),
        ("target_modules=all-linear/q_proj+v_proj", {"target_modules": Choices(("all-linear", "q_proj+v_proj"))}),
    ],
)
def test_a_space_is_read_as_typed(over, space):
    assert parse_space(over, recipe_of()) == space


@pytest.mark.parametrize(
    ("over", "what", "fix"),
    [
        ("learning_rat", "'learning_rat' is nothing to search over", "did you mean learning_rate?"),
        ("adapter.learning_rate", "'adapter.learning_rate' is nothing", "did you mean learning_rate?"),
        ("r=8,16", "'16' is nothing to search over", "such as r=8/16"),
        ("r,r", "r is named twice", "name it once"),
        ("", "nothing to search over", "name some of learning_rate, r,"),
        ("lr=1..2", "train.learning_rate is 1.0; expected a number above 0 and below 1", ""),
        ("r=0..4", "adapter.r is 0; expected a whole number of at least 1", ""),
        ("r=a|b", "adapter.r is 'a'; expected a whole number", ""),
        ("lr=1e-3..1e-5", "begins at or above its end", "write learning_rate=1e-05..0.001"),
        ("lr=1e-3..", "learning_rate=1e-3.. is no range", "write learning_rate=1e-05..0.01"),
        ("target_modules=1..2", "target_modules=1..2 is no range", "all-linear/q_proj+v_proj"),
        ("lr_scheduler_type=cosin", "train.lr_scheduler_type is 'cosin'", "did you mean cosine?"),
    ],
)
def test_what_is_no_space_is_refused(over, what, fix):
    with pytest.raises(TopcoatError) as caught:
        parse_space(over, recipe_of())
    said = caught.value.problems[-1]
    assert what in said.what
    assert fix in said.fix
    assert said.where.startswith("--over")


def test_everything_wrong_is_said_at_once():
    with pytest.raises(TopcoatError) as caught:
        parse_space("foo,bar,r=0/8", recipe_of())
    assert len(caught.value.problems) == 3


def test_a_setting_that_the_method_lacks_is_refused_and_rates_go_by_the_method():
    full = recipe_of(adapter={"method": "full"})
    with pytest.raises(TopcoatError, match="r is no setting of method full"):
        parse_space("r", full)
    assert parse_space("learning_rate", full)["learning_rate"] == Range(1e-6, 1e-3, True)
    assert parse_space("lr", recipe_of(adapter={"method": "ia3"}))["learning_rate"] == Range(1e-4, 0.1, True)


@pytest.mark.parametrize("name", SPACE)
def test_every_usual_range_is_one_that_a_recipe_takes(name):
    recipe = recipe_of()
    space = parse_space(name, recipe)
    made = with_values(recipe, suggest(space, First()))
    assert getattr(getattr(made, SPACE[name][0]), name) is not None


def test_the_recipes_own_values_come_first_where_they_lie_in_the_space():
    recipe = recipe_of(adapter={"r": 16, "target_modules": ["q_proj", "v_proj"]})
    space = parse_space("learning_rate,r,target_modules", recipe)
    values = {"learning_rate": 1e-3, "r": 16, "target_modules": "q_proj+v_proj"}
    assert own_values(space, recipe, 1e-3) == values
    assert own_values(parse_space("r=32|64", recipe), recipe, 1e-3) == {}


def test_ranks_above_a_matrix_are_left_out():
    heard: list[str] = []
    recipe = recipe_of()
    assert fitting(parse_space("r=64|192|193", recipe), recipe, heard.append)["r"] == Choices((64, 192))
    assert heard == ["left out of r: 193, above what a matrix of this model can have"]
    with pytest.raises(TopcoatError, match="rank 193 is above k_proj's"):
        fitting(parse_space("r=193|200", recipe), recipe, heard.append)


def test_the_winner_is_a_whole_recipe_that_loads(tmp_path):
    recipe = recipe_of(train={"warmup_ratio": 0.1})
    text = winner_text(recipe, {"learning_rate": 2e-4, "target_modules": "q_proj+v_proj"}, "the best of 3")
    (tmp_path / "winner.yaml").write_text(text)
    made = load_recipe(tmp_path / "winner.yaml", check_files=False)
    assert made.train.learning_rate == 2e-4
    assert made.adapter.target_modules == ["q_proj", "v_proj"]
    assert made.train.warmup_ratio == 0.1
    assert text.startswith("# the best of 3\n")


def test_a_value_at_the_edge_of_its_range_is_named():
    space = {"learning_rate": Range(1e-5, 1e-3, True), "r": Choices((4, 8))}
    assert at_edge(space, {"learning_rate": 9e-4, "r": 8}) == ["learning_rate"]
    assert at_edge(space, {"learning_rate": 1e-4, "r": 8}) == []


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("90s", 90), ("1h30m", 5400), ("0.5h", 1800)])
def test_a_time_is_read(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "said"), [("30", "write 30m or 30s"), ("soon", "such as 30m"), ("0m", "such as 30m"), ("m", "such as 30m")]
)
def test_what_is_no_time_is_refused(text, said):
    with pytest.raises(TopcoatError) as caught:
        parse_seconds(text)
    assert said in str(caught.value)


@given(st.floats(1e-7, 1e-3), st.floats(2, 1e4), st.integers(2, 60))
def test_rates_rise_by_one_factor_from_end_to_end(low, ratio, steps):
    found = rates(low, low * ratio, steps)
    assert found[0] == pytest.approx(low)
    assert found[-1] == pytest.approx(low * ratio)
    factors = [b / a for a, b in pairwise(found)]
    assert factors == pytest.approx([factors[0]] * len(factors))


@given(st.floats(-4.6, -2.4))
def test_the_test_finds_the_rate_from_which_a_loss_rises_again(best):
    ladder = rates(1e-5, 1e-1, 50)
    losses = [5 + 3 * (r > 10**best) * (r / 10**best - 1) - min(r / 10**best, 1) for r in ladder]
    found = narrowed(tuple(zip(ladder, losses, strict=True)), Range(1e-5, 1e-2, True))
    assert 10**best / 1.3 <= found.high <= 10**best * 1.3
    assert found.low == pytest.approx(max(1e-5, found.high / 30), rel=0.1)


def test_a_loss_that_never_falls_leaves_the_range_as_it_is():
    within = Range(1e-5, 1e-2, True)
    assert narrowed(tuple((r, 5 + r) for r in rates(1e-5, 1e-1, 20)), within) == within
    assert narrowed((), within) == within


def test_smoothing_keeps_a_constant_and_follows_a_fall():
    assert smoothed([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smoothed([4.0, 2.0])[1] == pytest.approx((0.7 * 4 + 2) / 1.7)


@given(st.integers(1, 5000))
def test_the_last_step_is_the_last_rung(total):
    rungs = rungs_of(total)
    assert rungs[total] == 9
    assert sorted(rungs.values()) == list(rungs.values())
    assert total < 9 or list(rungs.values()) == [1, 3, 9]
