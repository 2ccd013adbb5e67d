"""The allocation of ranks in the loop: the paper's schedule, PEFT's own run, and what must not change anything."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from topcoat.adapters.adalora_budget import Budget, resolved
from topcoat.adapters.settings import AdaloraConfig
from topcoat.errors import TopcoatError
from topcoat.model.fuse import fuse
from topcoat.training.loop import train
from topcoat.training.objectives.sft import sft
from topcoat.training.step_rules import step_rule

SMALL = AdaloraConfig(
    init_r=6, target_r=3, lora_alpha=9, tinit=3, tfinal=6, target_modules=["q_proj", "v_proj", "down_proj"]
)


def with_rule(made):
    """The loop with its method's rule, as a run makes it."""
    made.run.rule = step_rule(made.adapters, made.run.steps.total)
    return made


def ranks_of(made) -> dict[str, int]:
    return {path: layer.rank for path, layer in made.adapters.layers.items()}


TABLE = {0: 2520, 100: 2520, 101: 2516, 150: 2352, 200: 2208, 300: 1986, 400: 1836, 450: 1785, 500: 1746, 600: 1699}
TABLE |= {700: 1682, 750: 1680, 800: 1680, 801: 1680, 1000: 1680}


@pytest.mark.parametrize(("step", "expected"), TABLE.items())
def test_the_budget_of_210_linears_falls_as_the_authors_code_lets_it(step, expected):
    assert Budget(2520, 1680, tinit=100, tfinal=200, total=1000).at(step) == expected


@pytest.mark.parametrize(("step", "expected"), [(10, 24), (11, 23), (30, 18), (50, 16), (80, 16), (100, 16)])
def test_a_budget_of_two_linears(step, expected):
    assert Budget(24, 16, tinit=10, tfinal=20, total=100).at(step) == expected


@given(st.integers(1, 40), st.data())
def test_a_budget_never_rises_and_ends_where_it_should(linears, data):
    total = data.draw(st.integers(1, 300))
    tfinal = data.draw(st.integers(0, total - 1))
    tinit = data.draw(st.integers(0, total - tfinal - 1))
    target = data.draw(st.integers(1, 16))
    first = data.draw(st.integers(target + 1, 40))
    budget = Budget(first * linears, target * linears, tinit, tfinal, total)
    steps = [budget.at(step) for step in range(total + 1)]
    assert steps == sorted(steps, reverse=True)
    assert steps[: tinit + 1] == [first * linears] * (tinit + 1)
    assert steps[total - tfinal :] == [target * linears] * (tfinal + 1)


def test_a_schedule_without_room_is_refused_with_the_reason():
    with pytest.raises(TopcoatError) as caught:
        resolved(AdaloraConfig(tinit=60, tfinal=40), 100)
    text = str(caught.value)
    assert "between the first 60 and the last 40 steps of a run, and this one has 100: no step is left" in text
    assert "where: adapter.tinit" in text
    assert "lower adapter.tinit or adapter.tfinal, leave them out (a tenth and two fifths of the run)" in text
    with pytest.raises(TopcoatError, match="total_step is 90, and this run has 100 steps"):
        resolved(AdaloraConfig(total_step=90), 100)
    for total in range(1, 200):  # what it chooses itself always has room
        found = resolved(AdaloraConfig(), total)
        assert (found.tinit, found.tfinal, found.total_step) == (total // 10, int(0.4 * total), total)


def peft_run(made, settings, steps: int):
    """The same run by PEFT: its loss, its allocator, torch's AdamW and clipping; from our start."""
    peft = pytest.importorskip("peft")
    from topcoat.model.tiny import tiny_model

    config = made.adapters.config
    theirs = peft.get_peft_model(
        tiny_model("llama"),
        peft.AdaLoraConfig(
            task_type="CAUSAL_LM",
            target_modules=list(config.target_modules),
            **{
                name: getattr(config, name)
                for name in ("init_r", "target_r", "tinit", "tfinal", "deltaT", "total_step")
            },
            **{name: getattr(config, name) for name in ("lora_alpha", "beta1", "beta2", "orth_reg_weight")},
        ),
    )
    with torch.no_grad():
        for path, layer in made.adapters.layers.items():
            module = theirs.base_model.model.get_submodule(path)
            for name in ("lora_A", "lora_E", "lora_B"):
                getattr(module, name)["default"].copy_(getattr(layer, name))
    trained = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=made.run.peak_learning_rate, weight_decay=0.0)
    for step in range(steps):
        (batch,) = made.run.steps.micro_batches(step)
        theirs(input_ids=batch.input_ids, labels=batch.labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings["max_grad_norm"])
        optimizer.step()
        theirs.base_model.update_and_allocate(step + 1)
        optimizer.zero_grad()
    return theirs


@pytest.mark.parametrize(("deltaT", "tfinal"), [(1, 6), (4, 6), (1, 0)])
def test_a_run_is_pefts_own(loop, deltaT, tfinal):
    """Masks, scores, orthogonality, clipping and freezing, by another program."""
    settings = {"max_grad_norm": 0.7}
    config = SMALL.model_copy(update={"deltaT": deltaT, "tfinal": tfinal})
    made = with_rule(loop(config=config, steps=20, batch_size=1, packing=False, rate=5e-3, **settings))
    theirs = peft_run(made, settings, 20)
    train(made.run)
    pattern = theirs.peft_config["default"].rank_pattern
    for path, layer in made.adapters.layers.items():
        module = theirs.base_model.model.get_submodule(path)
        assert layer.kept.tolist() == pattern[f"{path}.lora_E.default"]
        for name in ("lora_A", "lora_E", "lora_B"):
            assert_close(getattr(layer, name), getattr(module, name)["default"], rtol=1e-2, atol=2e-4)
    scores = theirs.base_model.rankallocator.exp_avg_ipt
    if tfinal == 0:
        assert not scores  # PEFT forgets them at the end
    assert len(set(ranks_of(made).values())) > 1  # they have moved


def test_what_is_left_is_the_budget_to_the_unit(loop):
    made = with_rule(loop(config=SMALL, steps=20))
    train(made.run)
    assert sum(ranks_of(made).values()) == 3 * 6
    for layer in made.adapters.layers.values():
        assert int(layer.lora_E.count_nonzero()) == layer.rank
        assert torch.equal(layer.lora_E.flatten() != 0, layer.kept)


def test_equal_scores_do_not_take_more_than_the_budget_says(loop):
    """Nothing has been seen yet: all scores are zero, and a threshold would take everything."""
    made = with_rule(loop(config=SMALL, steps=20))
    for step in range(1, 21):
        made.run.rule.after_update(step, None)
        chosen = sum(int(kept.sum()) for kept in made.run.rule.chosen.values())
        assert chosen == made.run.rule.budget.at(step)
    assert sum(ranks_of(made).values()) == 3 * 6


@pytest.mark.parametrize("skipped", [14, 20])
def test_the_ranks_stand_at_the_end_even_if_that_step_was_skipped(loop, skipped):
    """tfinal 6 of 20: ranks stand from step 14 on; with tfinal 0, at the last."""
    config = SMALL.model_copy(update={"tfinal": 20 - skipped})
    made = with_rule(loop(config=config, steps=20))
    inner = made.run.loss
    made.run.loss = lambda batch: inner(batch) * (math.nan if made.run.progress.step == skipped else 1)
    end = train(made.run)
    assert end.skipped_steps == 1
    assert sum(ranks_of(made).values()) == 3 * 6


def test_the_penalty_is_added_once_a_step_however_many_micro_batches_it_has(loop):
    """Also through the loss scale of fp16, which the update divides by again."""
    whole = with_rule(loop(config=SMALL, steps=20, budget=1000))
    parts = with_rule(loop(config=SMALL, steps=20, budget=20))
    train(whole.run)
    train(parts.run)
    assert len(parts.run.steps.micro_batches(0)) > 1
    assert [row["penalty"] for row in parts.rows] == pytest.approx([row["penalty"] for row in whole.rows], rel=1e-4)
    assert ranks_of(parts) == ranks_of(whole)
    for name, value in whole.run.parameters.items():
        assert_close(parts.run.parameters[name], value, rtol=1e-3, atol=1e-4)


def test_the_loss_scale_changes_nothing(loop):
    from topcoat.training.loss_scale import LossScale

    plain = with_rule(loop(config=SMALL, steps=20))
    scaled = with_rule(loop(config=SMALL, steps=20, scale=LossScale(1024.0, dynamic=False)))
    train(plain.run)
    train(scaled.run)
    assert ranks_of(scaled) == ranks_of(plain)
    for name, value in plain.run.rule.sensitivity.items():
        assert_close(scaled.run.rule.sensitivity[name], value, rtol=1e-4, atol=1e-9)


def test_the_gradient_of_the_penalty_is_the_definitions(loop):
    made = with_rule(loop(config=SMALL, steps=20))
    rule = made.run.rule
    rule.penalty().backward()
    wide = {n: p.detach().double().requires_grad_() for n, p in made.run.parameters.items() if not n.endswith("lora_E")}
    terms = []
    for name, p in wide.items():
        product = p @ p.T if name.endswith("lora_A") else p.T @ p
        terms.append((product - torch.eye(6, dtype=torch.float64)).square().sum().sqrt())
    (0.5 * torch.stack(terms).mean()).backward()
    for name, p in wide.items():
        assert_close(made.run.parameters[name].grad.double(), p.grad, rtol=1e-4, atol=1e-9)


def test_training_makes_the_directions_more_orthonormal_unless_told_not_to(loop):
    made = with_rule(loop(config=SMALL, steps=20, rate=2e-2))
    train(made.run)
    assert made.rows[-1]["penalty"] < 0.7 * made.rows[0]["penalty"]
    free = with_rule(loop(config=SMALL.model_copy(update={"orth_reg_weight": 0.0}), steps=20))
    train(free.run)
    assert "penalty" not in free.rows[0]


def test_the_rows_of_metrics_tell_budget_and_ranks(loop):
    made = with_rule(loop(config=SMALL, steps=20))
    train(made.run)
    assert [row["budget"] for row in made.rows] == [made.run.rule.budget.at(step) for step in range(1, 21)]
    told = {row["step"]: row["ranks"] for row in made.rows if "ranks" in row}
    assert set(told) >= {1, 14, 20}
    assert {sum(ranks.values()) for ranks in (told[1], told[20])} == {36, 18}
    assert told[20] == told[14] == ranks_of(made)
    assert set(told[1]) == set(made.adapters.layers)


def test_before_the_ranks_stand_no_evaluation_is_the_best_or_ends_the_run(loop):
    """The lowest loss comes at step 4, when all ranks are still there, and the loss rises from then on."""
    made = with_rule(
        loop(config=SMALL, steps=20, evaluate_every=2, validate=lambda step: 1 + step / 10, early_stopping_patience=2)
    )
    end = train(made.run)
    assert (end.best_step, end.ended, end.step) == (14, "early stopping", 18)
    assert sum(ranks_of(made).values()) == 18


def test_the_hand_written_blocks_give_the_same_run(loop):
    plain, fast = (with_rule(loop(config=SMALL, steps=20, rate=5e-3)) for _ in range(2))
    blocks = fuse(fast.model)
    assert not isinstance(blocks, str)
    fast.run.loss = lambda batch: sft(fast.model, batch, blocks)
    train(plain.run)
    train(fast.run)
    assert fast.losses() == pytest.approx(plain.losses(), rel=1e-5)
    assert ranks_of(fast) == ranks_of(plain)
    for name, value in plain.run.parameters.items():
        assert_close(fast.run.parameters[name], value, rtol=1e-3, atol=1e-4)


def test_a_method_without_a_rule_adds_nothing_to_its_rows(loop):
    made = with_rule(loop(steps=2))
    train(made.run)
    assert made.run.rule.state() == {}
    assert not {"penalty", "budget", "ranks"} & set(made.rows[0])
