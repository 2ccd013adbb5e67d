"""Memory that runs out in a run: said before anything is scored, halved, kept for a resume, and beside the plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from topcoat.errors import Interrupted, Refused
from topcoat.runs import rehearsal, scorers, scoring, session
from topcoat.runs.folder import RunFolder
from topcoat.training.metrics import read_metrics


@pytest.fixture
def small_memory(monkeypatch):
    """small_memory(positions): a training micro batch of more positions does not fit, from the call `after` on."""

    def limit(positions, after=0):
        sizes: list[int] = []
        real = session.make_loss

        def make_loss(*arguments, **options):
            loss = real(*arguments, **options)

            def limited(batch):
                sizes.append(batch.input_ids.numel())
                if torch.is_grad_enabled() and sizes[-1] > positions and len(sizes) > after:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.\nmore")
                return loss(batch)

            return limited

        monkeypatch.setattr(session, "make_loss", make_loss)
        return sizes

    return limit


def weights(result):
    return load_file(result.adapter / "adapter_model.safetensors")


def test_a_run_whose_memory_is_small_learns_the_same(train, tiny_recipe, small_memory, ear):
    whole = train(tiny_recipe("whole", train={"max_steps": 3}))
    heard = ear()
    sizes = small_memory(100)
    halved = train(tiny_recipe("halved", train={"max_steps": 3}), listener=heard)
    assert sizes[0] > 100
    assert max(sizes[1:]) <= 100
    assert "step 0: memory ran out (CUDA out of memory. Tried to allocate 1.00 GiB.)" in heard.text
    for name, value in weights(whole).items():
        assert torch.allclose(value, weights(halved)[name], atol=1e-5), name
    events = [row for row in read_metrics(halved.folder / "metrics.jsonl") if "out_of_memory" in row]
    assert [row["step"] for row in events] == [0]
    plan = json.loads((halved.folder / "plan.json").read_text())
    assert plan["micro_batch_tokens_after_halving"] == events[-1]["micro_batch_tokens"] <= 100


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """How many rows were answered at once, each time; more than 16 run out of memory."""
    real, sizes = scoring.answer, []

    def answer(*arguments, batch_size, **options):
        sizes.append(batch_size)
        if batch_size > 16:
            raise MemoryError
        return real(*arguments, batch_size=batch_size, **options)

    monkeypatch.setattr(scoring, "answer", answer)
    return sizes


def test_evaluation_answers_fewer_at_once_where_memory_is_small(train, tiny_recipe, asked, ear):
    heard = ear()
    result = train(tiny_recipe(evaluate={"metrics": ["exact_match"]}, train={"max_steps": 1}), listener=heard)
    assert asked[:3] == [64, 32, 16]
    assert set(asked[3:]) == {16}
    assert result.tuned.exact_match is not None
    assert "memory ran out while evaluating: 16 rows are answered at once from here on" in heard.text


def test_a_row_that_cannot_be_answered_alone_is_refused(train, tiny_recipe, monkeypatch):
    def answer(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(scoring, "answer", answer)
    with pytest.raises(Refused, match="evaluating one row at a time does not fit into memory"):
        train(tiny_recipe(evaluate={"metrics": ["exact_match"]}, train={"max_steps": 1}))


def test_what_was_halved_while_evaluating_stays_so_in_a_resumed_run(train, tiny_recipe, asked, ear, stop_after, trace):
    whole = tiny_recipe("whole", evaluate={"metrics": ["exact_match", "perplexity"]})
    train(whole)
    stopped = {**whole, "output": whole["output"] + "-stopped"}
    with pytest.raises(Interrupted):
        train(stopped, listener=ear(stop_after["step"](5)))
    asked.clear()
    heard = ear()
    train(stopped, resume=True, listener=heard)
    assert set(asked) == {16}
    assert "memory ran out" not in heard.text
    assert trace(stopped["output"]) == trace(whole["output"])


def test_a_resumed_run_computes_its_worst_micro_batch_first_and_is_bit_for_bit_the_same(
    train, tiny_recipe, small_memory, ear, stop_after, trace, monkeypatch
):
    own = {"adapter": {"lora_dropout": 0.1}, "train": {"micro_batch_tokens": 40}}
    whole = tiny_recipe("whole", **own)
    train(whole)
    stopped = {**whole, "output": whole["output"] + "-stopped"}
    with pytest.raises(Interrupted):
        train(stopped, listener=ear(stop_after["step"](3)))
    sizes, rehearsed, real = small_memory(10**9), [], rehearsal.probe
    monkeypatch.setattr(rehearsal, "probe", lambda run: (rehearsed.append((run.progress.step, len(sizes))), real(run)))
    train(stopped, resume=True)
    assert rehearsed == [(3, 0)]
    assert sizes[0] == max(sizes)
    assert trace(stopped["output"]) == trace(whole["output"])


def test_memory_that_shrank_since_is_found_before_a_resumed_run_goes_on(
    train, tiny_recipe, small_memory, ear, stop_after
):
    recipe = tiny_recipe()
    with pytest.raises(Interrupted):
        train(recipe, listener=ear(stop_after["step"](3)))
    sizes, heard = small_memory(100), ear()
    result = train(recipe, resume=True, listener=heard)
    assert sizes[0] > 100 >= max(sizes[1:])
    assert "step 3: memory ran out" in heard.text
    events = [row for row in read_metrics(result.folder / "metrics.jsonl") if "out_of_memory" in row]
    assert [row["step"] for row in events] == [3]


def test_what_is_refused_before_its_first_step_leaves_its_folder_to_another_recipe(
    train, tiny_recipe, small_memory, monkeypatch
):
    roomy = session.make_loss
    small_memory(8)
    recipe = tiny_recipe()
    with pytest.raises(Refused, match="does not fit into memory by itself"):
        train(recipe)
    assert not Path(recipe["output"]).exists()
    Path(recipe["output"]).mkdir()
    with pytest.raises(Refused):
        train(recipe)
    assert [path.name for path in Path(recipe["output"]).iterdir()] == [RunFolder(Path()).lock.name]
    monkeypatch.setattr(session, "make_loss", roomy)
    advised = tiny_recipe(train={"recompute": "block", "max_steps": 1})
    assert train(advised).steps == 1


def test_a_stop_during_the_rehearsal_leaves_nothing_behind(train, tiny_recipe, small_memory, ear):
    small_memory(100)
    recipe = tiny_recipe()
    listener = ear(lambda figures: "memory ran out" in str(figures.get("text")))
    with pytest.raises(Interrupted, match="SIGTERM: stopped") as caught:
        train(recipe, listener=listener)
    assert caught.value.problems[0].fix == "the same command starts again"
    assert not Path(recipe["output"]).exists()


@pytest.mark.parametrize("objective", ["classification", "regression"])
def test_labels_are_evaluated_in_smaller_batches_where_memory_is_small(
    train, tiny_recipe, tmp_path, monkeypatch, ear, objective
):
    words = ["good", "bad", "fine", "poor", "nice", "ugly"]
    answers = [["right", "wrong"][i % 2] if objective == "classification" else 0.5 * i for i in range(12)]
    rows = [{"text": f"this is {words[i % 6]} indeed", "label": answer} for i, answer in enumerate(answers)]
    file = tmp_path / "labels.jsonl"
    for name in (file, tmp_path / "held.jsonl"):
        name.write_text("".join(json.dumps(row) + "\n" for row in rows))
    real, sizes = scorers.label_logits, []

    def label_logits(model, batch, fused=None):
        sizes.append(len(batch.rows))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return real(model, batch, fused)

    monkeypatch.setattr(scorers, "label_logits", label_logits)
    heard = ear()
    recipe = tiny_recipe(
        data={"train": str(file), "validation": str(tmp_path / "held.jsonl")},
        train={"objective": objective, "max_steps": 2},
    )
    recipe["evaluate"] = {"every": 1}
    result = train(recipe, listener=heard)
    assert max(sizes) > 2
    assert "memory ran out while evaluating" in heard.text
    assert result.tuned.figures
    last = max((result.folder / "checkpoints").glob("step-*"))
    assert json.loads((last / "state.json").read_text())["evaluation_halvings"] > 0


def test_predicted_and_measured_stand_side_by_side(train, tiny_recipe):
    result = train(tiny_recipe(train={"max_steps": 2}))
    plan = json.loads((result.folder / "plan.json").read_text())
    assert plan["peak_bytes"] == sum(line["bytes"] for line in plan["lines"])
    assert plan["measured_peak_bytes"] > 2**20
    assert 0 < plan["step_seconds"][0] <= plan["step_seconds"][1]
    assert plan["run_seconds"] == [2 * seconds for seconds in plan["step_seconds"]]
    assert plan["measured_step_seconds"] > 0
    assert plan["measured_train_seconds"] > 0
    assert "micro_batch_tokens_after_halving" not in plan
