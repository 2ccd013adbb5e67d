"""Every objective beside sft through the command line: it learns four rows, and what it leaves is of use."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from topcoat.adapters.files import load_adapter
from topcoat.errors import TopcoatError
from topcoat.exporting.labels import label_logits_of
from topcoat.model.load import load_model
from topcoat.model.score import put_score_head
from topcoat.model.settings import ModelSettings
from topcoat.recipe.load import recipe_from_dict
from topcoat.runs.conversation import Sampling, open_chat
from topcoat.runs.merging import merge_run
from topcoat.runs.run import run
from topcoat.runs.scorers import SCORERS
from topcoat.training.objectives.table import OBJECTIVES

TEXTS = ["the printer is on fire", "the invoice is wrong", "my screen stays black", "I was charged twice"]
KINDS = ["hardware", "money", "hardware", "money"]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def recipe_of(tiny_recipe, tmp_path):
    """recipe_of(objective, rows, **train): a recipe that trains and validates on the same rows."""

    def make(objective: str, rows: list[dict], adapter: dict | None = None, model: dict | None = None, **train):
        data = {"train": write(tmp_path / "rows.jsonl", rows), "validation": write(tmp_path / "held.jsonl", rows)}
        train = {"max_steps": 40, "batch_size": 4, "learning_rate": 1e-2, "objective": objective} | train
        recipe = tiny_recipe(train=train, model=model or {}, evaluate={"every": 40})
        return recipe | {"data": data, "adapter": adapter or {"method": "lora", "r": 8}}

    return make


def labelled() -> list[dict]:
    return [{"text": text, "label": kind} for text, kind in zip(TEXTS, KINDS, strict=True)]


def test_every_objective_is_measured():
    assert set(SCORERS) == set(OBJECTIVES)


@pytest.mark.parametrize(
    ("model", "adapter", "train"),
    [
        ({}, None, {}),
        ({"compute_dtype": "bf16", "quantization": {"format": "nf4"}}, None, {"neftune_noise_alpha": 2}),
        ({}, {"method": "full"}, {"learning_rate": 2e-3}),
        ({}, {"method": "p_tuning_v2", "num_virtual_tokens": 4}, {"learning_rate": 5e-2}),
        pytest.param({}, {"method": "ia3"}, {"label_smoothing": 0.05, "learning_rate": 5e-2}, marks=pytest.mark.slow),
        pytest.param({}, None, {"class_weights": "balanced", "micro_batch_tokens": 16}, marks=pytest.mark.slow),
    ],
    ids=["LoRA", "QLoRA with NEFTune", "full", "a prefix", "IA3 with smoothing", "weighted in micro batches"],
)
def test_it_learns_the_labels_of_four_texts(model, adapter, train, recipe_of, tmp_path, topcoat):
    recipe = recipe_of("classification", labelled(), adapter, model, **train)
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = topcoat("train", str(tmp_path / "recipe.yaml"), "--json")
    assert done.code == 0, done.err
    assert done.json["base"]["accuracy"] == 0.5
    assert done.json["tuned"]["accuracy"] == done.json["tuned"]["macro_f1"] == 1
    assert done.json["tuned"]["confusion"] == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_llama):
    """Run folders of a classification and of a regression of two numbers, trained once."""
    folder = tmp_path_factory.mktemp("labelled")
    numbers = [{"text": text, "x": at / 2, "y": -at / 3} for at, text in enumerate(TEXTS)]
    files = {"classification": write(folder / "l.jsonl", labelled()), "regression": write(folder / "n.jsonl", numbers)}
    for objective, file in files.items():
        columns = {"label_columns": ["x", "y"]} if objective == "regression" else {}
        recipe = {
            "model": {"path": str(tiny_llama), "compute_dtype": "fp32"},
            "adapter": {"r": 8},
            "data": {"train": file, "validation": shutil.copy(file, f"{file}.held.jsonl"), **columns},
            "train": {"objective": objective, "max_steps": 120, "batch_size": 4, "learning_rate": 1e-2},
            "evaluate": {"every": 60},
            "output": str(folder / objective),
        }
        run(recipe_from_dict(recipe))
    return folder


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_it_learns_numbers(finished):
    found = results_of(finished / "regression")
    assert found["labels"] == ["x", "y"]
    assert found["adapter"]["r2"] > 0.9 > found["base"]["r2"]
    assert set(found["adapter"]["numbers"]) == {"x", "y"}
    assert found["base"]["pearson"] is None  # a constant answer follows nothing


def test_results_report_and_card_show_labels_instead_of_answers(finished):
    folder = finished / "classification"
    found = results_of(folder)
    assert found["labels"] == ["hardware", "money"]
    assert [sample["adapter"] for sample in found["samples"]] == KINDS
    assert [sample["prompt"] for sample in found["samples"]] == TEXTS
    report = (folder / "report.html").read_text()
    for said in ("Accuracy", "Macro-F1", "always saying the most frequent label", "hardware"):
        assert said in report, said
    card = (folder / "adapter" / "README.md").read_text()
    for said in (
        'pipeline_tag: "text-classification"',
        "AutoModelForSequenceClassification",
        "| Accuracy | 50.0 % | 100.0 % |",
    ):
        assert said in card, said
    assert "exact match" not in card
    assert "Spearman" in (finished / "regression" / "report.html").read_text()


@pytest.mark.parametrize("objective", ["classification", "regression"])
def test_transformers_and_peft_say_the_same_of_a_padded_batch(objective, finished, tiny_llama, topcoat):
    folder = finished / objective / "adapter"
    config = AutoConfig.from_pretrained(folder)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_llama, config=config, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder).eval()
    assert list(config.label2id) == results_of(finished / objective)["labels"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**tokenizer(TEXTS, return_tensors="pt", padding=True)).logits
    samples = results_of(finished / objective)["samples"]
    if objective == "classification":
        assert [config.id2label[int(at)] for at in outputs.argmax(-1)] == [sample["adapter"] for sample in samples]
    else:
        said = torch.tensor([[float(value) for value in sample["adapter"].split(", ")] for sample in samples])
        torch.testing.assert_close(outputs, said, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("objective", ["classification", "regression"])
def test_the_merged_model_is_proved_by_transformers_own_class(objective, finished, tmp_path):
    merged, proof = merge_run(finished / objective, tmp_path / "merged")
    assert proof.holds
    model = AutoModelForSequenceClassification.from_pretrained(merged, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(merged)
    with torch.no_grad():
        outputs = model(**tokenizer(TEXTS, return_tensors="pt", padding=True)).logits
    samples = results_of(finished / objective)["samples"]
    if objective == "classification":
        assert [model.config.id2label[int(at)] for at in outputs.argmax(-1)] == [s["adapter"] for s in samples]
    else:
        said = torch.tensor([[float(value) for value in sample["adapter"].split(", ")] for sample in samples])
        torch.testing.assert_close(outputs, said, rtol=1e-3, atol=1e-4)


def test_a_merge_that_loses_the_head_is_refused(finished, tmp_path, monkeypatch):
    import topcoat.exporting.merge as merge

    whole = merge.merged_tensors
    lost = lambda *arguments: ((name, t * 0 if name == "score.weight" else t) for name, t in whole(*arguments))  # noqa: E731
    monkeypatch.setattr(merge, "merged_tensors", lost)
    with pytest.raises(TopcoatError, match="does not compute what it should"):
        merge_run(finished / "classification", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_line_typed_is_labelled(finished, topcoat, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("the printer is on fire\n/adapter off\n"))
    done = topcoat("chat", str(finished / "classification"))
    assert done.code == 0, done.err
    assert "\nhardware " in done.out
    assert "the base has no head for labels" in done.err + done.out
    monkeypatch.setattr(sys, "stdin", io.StringIO("the printer is on fire\n"))
    assert "\nx " in topcoat("chat", str(finished / "regression")).out


def test_a_labelled_run_takes_no_system_message(finished, topcoat, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    done = topcoat("chat", str(finished / "classification"), "--system", "Be brief.")
    assert done.code == 2
    assert "it takes no system message" in done.err


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_peft_reads_virtual_tokens_with_the_head_that_was_trained_beside_them(method, recipe_of, tiny_llama, tmp_path):
    recipe = recipe_of("classification", labelled(), {"method": method, "num_virtual_tokens": 4}, learning_rate=3e-2)
    run(recipe_from_dict(recipe | {"output": str(tmp_path / "run")}))
    folder, found = tmp_path / "run" / "adapter", results_of(tmp_path / "run")
    assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] == ["score"]
    config = AutoConfig.from_pretrained(folder)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_llama, config=config, dtype=torch.float32)
    model, tokenizer = PeftModel.from_pretrained(base, folder).eval(), AutoTokenizer.from_pretrained(folder)
    for text, sample in zip(TEXTS, found["samples"], strict=True):  # one by one: before a padded row PEFT reads its end
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        assert config.id2label[int(logits.argmax())] == sample["adapter"]


def test_a_labelling_adapter_of_peft_is_read(tiny_llama, tmp_path):
    """Its settings name a "classifier" too, which no model here has."""
    base = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=2, dtype=torch.float32)
    theirs = get_peft_model(base, PeftLoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    theirs.save_pretrained(tmp_path)
    assert "classifier" in json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"]
    ours = load_model(ModelSettings(path=str(tiny_llama), compute_dtype="fp32", device="cpu"))
    put_score_head(ours, "classification", ["a", "b"], 0)
    load_adapter(ours.model, tmp_path)
    ids = [5, 9, 33, 7]
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor([ids])).logits
    torch.testing.assert_close(label_logits_of(ours.model, [ids])[0], expected, rtol=1e-4, atol=1e-4)


def test_it_learns_a_text_by_heart(tiny_recipe, tmp_path, topcoat):
    for name in ("book.txt", "same.txt"):
        (tmp_path / name).write_text("Every weight is frozen and only the small matrices learn. " * 6)
    recipe = tiny_recipe(train={"max_steps": 60, "batch_size": 4, "learning_rate": 1e-2, "objective": "completion"})
    recipe["data"] = {"train": str(tmp_path / "book.txt"), "validation": str(tmp_path / "same.txt"), "max_length": 24}
    recipe["adapter"] = {"r": 16}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = topcoat("train", str(tmp_path / "recipe.yaml"), "--json")
    assert done.code == 0, done.err
    assert done.json["tuned"]["perplexity"] < 4 < 100 < done.json["base"]["perplexity"]
    assert "overlong: split" in (tmp_path / "run" / "recipe.yaml").read_text()
    told: list[str] = []
    chat = open_chat(str(tmp_path / "run"), told.append)
    assert "each line is the beginning of a text" in told[0]
    begun = "Every weight is frozen and"
    for _ in range(2):  # nothing is remembered: the second time it is asked the same
        assert (
            begun + chat.answer(begun, lambda piece: None, Sampling(max_new_tokens=4))
            in (tmp_path / "book.txt").read_text()
        )
    with pytest.raises(TopcoatError, match="it takes no system message"):
        chat.start("be brief")


def test_smoothing_and_noise_are_of_training_alone(tiny_recipe, train):
    """The first validation loss is that of the same weights: a rate of nearly zero, with them and without."""
    losses = []
    for name, settings in {"plain": {}, "with": {"label_smoothing": 0.3, "neftune_noise_alpha": 50.0}}.items():
        recipe = tiny_recipe(name, train={"max_steps": 1, "learning_rate": 1e-12, **settings})
        train(recipe)
        rows = [json.loads(line) for line in (Path(recipe["output"]) / "metrics.jsonl").read_text().splitlines()]
        losses.append({key: value for row in rows for key, value in row.items() if "loss" in key})
    assert losses[0]["validation_loss"] == pytest.approx(losses[1]["validation_loss"], rel=1e-6)
    assert abs(losses[0]["loss"] - losses[1]["loss"]) > 1e-2
