"""AdaLoRA and IEC through the command line: trained, resumed, merged, and refused where no rank could be taken away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from topcoat.adapters.as_lora import as_lora
from topcoat.adapters.files import load_adapter, save_adapter
from topcoat.errors import Interrupted, TopcoatError
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.recipe.load import load_recipe, recipe_from_dict
from topcoat.training.metrics import read_metrics

ADALORA = {"method": "adalora", "init_r": 6, "target_r": 3, "tinit": 2, "tfinal": 3, "lora_alpha": 12}


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    def write(**sections) -> Path:
        values = tiny_recipe(**{"train": {"max_steps": 12}} | sections) | {"adapter": ADALORA}
        (tmp_path / "recipe.yaml").write_text(json.dumps(values))  # JSON is YAML
        return tmp_path / "recipe.yaml"

    return write


def logits_of(path: str, adapter: Path | None) -> torch.Tensor:
    model = load_model(ModelSettings(path=path, compute_dtype="fp32", device="cpu")).model
    if adapter is not None:
        load_adapter(model, adapter)
    with torch.no_grad():
        return model(torch.arange(3, 40)[None], use_cache=False).logits


def test_a_run_meets_its_budget_shows_its_ranks_and_merges(recipe, topcoat, tiny_llama, tmp_path):
    done = topcoat("train", str(recipe()))
    assert done.code == 0, done.err
    assert "hand-written blocks" in done.out + done.err
    run = tmp_path / "run"
    written = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (written["total_step"], written["tinit"], written["tfinal"]) == (12, 2, 3)
    assert sum(map(sum, written["rank_pattern"].values())) == 3 * 14
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "budget" in row]
    assert [row["budget"] for row in rows][:2] == [84, 84]
    assert rows[-1]["budget"] == 42
    assert sum(rows[-1]["ranks"].values()) == 42
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "14 linears had 84 ranks together at step 1 and have 42 at step 12" in page
    merged = topcoat("merge", str(run))
    assert merged.code == 0, merged.err
    tuned = logits_of(str(tiny_llama), run / "adapter")
    assert_close(logits_of(str(run / "merged"), None), tuned, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(tuned, logits_of(str(tiny_llama), None), atol=1e-3)


def test_rows_of_the_embedding_train_beside_it_and_merge(tiny_recipe, topcoat, tiny_llama, tmp_path):
    values = tiny_recipe(train={"max_steps": 8}) | {"adapter": ADALORA | {"trainable_token_indices": [1, 2]}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    for verb in (["train", str(tmp_path / "recipe.yaml")], ["merge", str(tmp_path / "run")]):
        done = topcoat(*verb)
        assert done.code == 0, done.err
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "budget" in row]
    assert rows[-1]["budget"] == 42  # of the linears alone
    tuned = logits_of(str(tiny_llama), tmp_path / "run" / "adapter")
    assert_close(logits_of(str(tmp_path / "run" / "merged"), None), tuned, rtol=1e-4, atol=1e-4)


def test_it_is_written_as_a_plain_lora_that_computes_the_same(recipe, topcoat, tiny_llama, tmp_path):
    assert topcoat("train", str(recipe())).code == 0
    model = load_model(ModelSettings(path=str(tiny_llama), compute_dtype="fp32", device="cpu")).model
    (tmp_path / "plain").mkdir()
    save_adapter(as_lora(load_adapter(model, tmp_path / "run" / "adapter")), tmp_path / "plain", "tiny")
    tuned = logits_of(str(tiny_llama), tmp_path / "run" / "adapter")
    assert_close(logits_of(str(tiny_llama), tmp_path / "plain"), tuned, rtol=1e-5, atol=1e-5)


def test_the_best_of_a_run_is_one_that_meets_the_budget(recipe, train, tmp_path, monkeypatch):
    """The second evaluation is by far the best, while ranks still go; the third comes after."""
    losses = iter([5.0, 1.0, 4.0, 4.5])
    monkeypatch.setattr("topcoat.runs.session.Scorer.loss", lambda scorer: next(losses))
    path = recipe(evaluate={"every": 3, "metrics": ["perplexity"]})
    train(json.loads(path.read_text()))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["best_step"] == 9
    written = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert sum(map(sum, written["rank_pattern"].values())) == 42


def test_a_run_stopped_among_its_moving_ranks_goes_on_as_if_it_had_not(recipe, train, trace, ear, stop_after):
    whole = json.loads(recipe().read_text())
    train(whole)
    stopped = whole | {"output": whole["output"] + "-stopped"}
    for step, resume in ((5, False), (9, True)):  # ranks move; ranks have just been settled
        with pytest.raises(Interrupted):
            train(stopped, resume=resume, listener=ear(stop_after["step"](step)))
    train(stopped, resume=True)
    assert trace(stopped["output"]) == trace(whole["output"])


def test_a_run_too_short_for_its_schedule_is_refused_before_it_writes_anything(recipe, train, tmp_path):
    values = json.loads(recipe().read_text())
    values["train"] = values["train"] | {"max_steps": None, "epochs": 1}  # four steps of ten rows
    values["train"].pop("max_steps")
    with pytest.raises(TopcoatError) as caught:
        train(values)
    assert "between the first 2 and the last 3 steps of a run, and this one has 4: no step is left" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_recipe_alone_tells_where_its_steps_are_too_few(recipe):
    path = recipe(train={"max_steps": 5})
    with pytest.raises(TopcoatError) as caught:
        load_recipe(path)
    said = (
        "train.max_steps is 5, which leaves AdaLoRA no step to take ranks away: adapter.tinit and adapter.tfinal have 5"
    )
    assert said in str(caught.value)
    load_recipe(path, ["train.max_steps=6"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target_r": 6}, "target_r is 6, and init_r 6 leaves no rank to take away"),
        ({"target_r": 9}, "target_r is 9, and init_r 6 leaves no rank to take away"),
        ({"init_r": 0}, "adapter.init_r is 0; expected a whole number of at least 1"),
        ({"target_r": 0}, "adapter.target_r is 0; expected a whole number of at least 1"),
        ({"beta1": 1}, "adapter.beta1 is 1"),
    ],
    ids=str,
)
def test_settings_that_mean_no_adalora_are_refused_as_the_recipe_is_read(tiny_recipe, change, said):
    with pytest.raises(TopcoatError) as caught:
        recipe_from_dict(tiny_recipe() | {"adapter": ADALORA | change})
    assert said in str(caught.value)


def test_irqlora_is_read_as_its_two_halves(tiny_recipe):
    found = recipe_from_dict(tiny_recipe() | {"adapter": {"method": "irqlora"}})
    assert found.adapter.method == "iec"
    assert found.model.quantization.format == "nf4-icq"


def test_iec_trains_on_nf4_icq_and_merges(tiny_recipe, topcoat, tmp_path):
    stored = {"format": "nf4-icq", "search_points": 5}
    values = tiny_recipe(model={"quantization": stored}, train={"max_steps": 4}) | {
        "adapter": {"method": "iec", "r": 4}
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    done = topcoat("train", str(tmp_path / "recipe.yaml"))
    assert done.code == 0, done.err
    merged = topcoat("merge", str(tmp_path / "run"))
    assert merged.code == 0, merged.err
    assert json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
