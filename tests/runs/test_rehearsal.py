"""Memory that runs out in a run: said before anything is scored, halved, kept for a resume, and beside the plan."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from topcoat.errors import Refused
from topcoat.runs import scoring, session
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


def test_evaluation_answers_fewer_at_once_where_memory_is_small(train, tiny_recipe, monkeypatch, ear):
    real, asked = scoring.answer, []

    def answer(*arguments, batch_size, **options):
        asked.append(batch_size)
        if batch_size > 16:
            raise MemoryError
        return real(*arguments, batch_size=batch_size, **options)

    monkeypatch.setattr(scoring, "answer", answer)
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
