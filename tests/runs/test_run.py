"""One run from recipe to folder: it learns what it is given, and leaves everything that is known about it."""

import json
import threading
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from topcoat.adapters.methods import METHODS
from topcoat.model.load import load_model
from topcoat.model.settings import ModelSettings
from topcoat.recipe.load import load_recipe, recipe_from_dict
from topcoat.runs.run import run
from topcoat.training.metrics import read_metrics
from topcoat.training.objectives.table import OBJECTIVES

FOUR = [
    ("the first", "alpha one"),
    ("the second", "beta: zwei\nzeilen"),
    ("the third", "γάμμα 🙂"),
    ("the fourth", '{"d": 4}'),
]


@pytest.fixture
def four(tmp_path):
    """The same four rows to train on and to answer."""
    text = "".join(json.dumps({"prompt": f"Say {q}.", "completion": a}) + "\n" for q, a in FOUR)
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text(text)
    return {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation")}


def test_there_is_one_objective_to_overfit():
    """Another objective needs a test below."""
    assert set(OBJECTIVES) == {"sft", "completion", "classification", "regression"}  # the others: test_objectives.py
    assert set(METHODS) == {"lora", "dora", "qalora", "adalora", "iec", "miss", "vera", "ia3"}  # and full


@pytest.mark.parametrize(
    ("model", "adapter", "rate"),
    [
        ({}, {"method": "lora", "r": 8}, 1e-2),
        ({"compute_dtype": "bf16", "quantization": {"format": "nf4"}}, {"method": "lora", "r": 16}, 1e-2),
        ({}, {"method": "full"}, 2e-3),
        ({}, {"method": "dora", "r": 8}, 1e-2),
        ({}, {"method": "miss", "r": 16}, 1e-2),
        ({}, {"method": "adalora", "target_r": 8, "init_r": 12}, 2e-2),
        ({"quantization": {"format": "nf4-icq", "search_points": 10}}, {"method": "iec", "r": 8}, 1e-2),
        ({}, {"init_lora_weights": "pissa", "r": 8, "lora_alpha": 8, "method": "lora"}, 5e-3),
    ],
    ids=["LoRA", "QLoRA", "full", "DoRA", "MiSS", "AdaLoRA", "IR-QLoRA", "PiSSA"],
)
def test_it_learns_four_examples_word_for_word(model, adapter, rate, four, tiny_recipe, tmp_path, topcoat):
    recipe = tiny_recipe(
        model=model,
        train={"max_steps": 60, "batch_size": 4, "learning_rate": rate},
        evaluate={"metrics": ["perplexity", "exact_match"], "max_new_tokens": 40, "every": 60},
    )
    recipe |= {"adapter": adapter, "data": four}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    done = topcoat("train", str(tmp_path / "recipe.yaml"), "--json")
    assert done.code == 0, done.err
    assert done.json["base"]["exact_match"] == 0
    assert done.json["tuned"]["exact_match"] == 1
    assert done.json["tuned"]["perplexity"] < 4 < done.json["base"]["perplexity"]
    assert done.json["adapter"] == str(Path(recipe["output"]) / ("model" if adapter["method"] == "full" else "adapter"))
    assert Path(done.json["adapter"]).is_dir()
    results = json.loads((Path(recipe["output"]) / "results.json").read_text())
    assert [sample["adapter"] for sample in results["samples"]] == [answer for _, answer in FOUR]


@pytest.mark.parametrize("adapter", [{"method": "vera"}, {"method": "ia3", "target_modules": "all-linear"}])
def test_methods_of_few_parameters_learn_too(adapter, four, tiny_recipe):
    train = {"max_steps": 60, "batch_size": 4, "learning_rate": 5e-2}
    recipe = tiny_recipe(train=train, evaluate={"metrics": ["perplexity"], "every": 60}) | {"adapter": adapter}
    done = run(recipe_from_dict(recipe | {"data": four}))
    assert done.tuned.perplexity < 0.5 * done.base.perplexity


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def folder(finished, tiny_recipe):
    """A finished run with its report, made once."""
    if not finished.exists():
        run(
            recipe_from_dict(
                tiny_recipe(
                    finished, adapter={"lora_dropout": 0.1}, evaluate={"metrics": ["perplexity", "exact_match"]}
                )
            )
        )
    return finished


def test_the_folder_is_complete(folder):
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "adapter",
        "checkpoints",
        "metrics.jsonl",
        "plan.json",
        "probe.json",
        "receipt.json",
        "recipe.yaml",
        "report.html",
        "results.json",
        "samples.jsonl",
    }
    assert {path.name for path in (folder / "adapter").iterdir()} >= {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
        "topcoat.json",
    }
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000004", "step-00000008"]


def test_its_recipe_is_the_recipe_and_gives_the_same_adapter_again(folder, tiny_recipe, train, trace, tmp_path):
    first = recipe_from_dict(
        tiny_recipe(folder, adapter={"lora_dropout": 0.1}, evaluate={"metrics": ["perplexity", "exact_match"]})
    )
    again = load_recipe(folder / "recipe.yaml")
    assert again == first
    run(load_recipe(folder / "recipe.yaml", [f"output={tmp_path / 'again'}"]))
    one, other = trace(folder), trace(tmp_path / "again")
    assert one == other


def test_its_metrics_hold_every_step_once(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert [row["step"] for row in rows if "validation_loss" in row] == [4, 8]
    assert all(a["elapsed_s"] < b["elapsed_s"] for a, b in pairwise(steps))
    assert all(row["tokens"] > row["target_tokens"] > 0 and row["memory_bytes"] > 2**20 for row in steps)


def test_its_samples_and_results_tell_the_same_questions(folder, tiny_rows):
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    results = json.loads((folder / "results.json").read_text())
    rows = [json.loads(line) for line in Path(tiny_rows["validation"]).read_text().splitlines()]
    assert [(s["step"], s["prompt"]) for s in samples] == [(s, r["prompt"]) for s in (4, 8) for r in rows[:2]]
    assert [s["reference"] for s in results["samples"]] == [r["completion"].strip() for r in rows]
    assert [s["answer"] for s in samples[2:]] == [s["adapter"] for s in results["samples"][:2]]
    assert results["rows"] == 4
    assert results["steps"] == 8
    assert results["ended"] == "finished"
    assert results["adapter"]["perplexity"] < results["base"]["perplexity"]


def test_its_plan_stands_beside_what_was_measured(folder):
    plan = json.loads((folder / "plan.json").read_text())
    assert sum(line["bytes"] for line in plan["lines"]) == plan["peak_bytes"]
    assert plan["measured_peak_bytes"] > 2**20


def test_its_receipt_names_what_went_in(folder, tiny_llama, tiny_rows):
    receipt = json.loads((folder / "receipt.json").read_text())
    base = load_model(ModelSettings(path=str(tiny_llama)))
    assert receipt["base"] == base.identity.model_dump()
    assert set(receipt["data"]) == {"train", "validation"}
    assert receipt["versions"]["torch"] == torch.__version__
    assert receipt["seed"] == 42
    adapter = json.loads((folder / "adapter" / "topcoat.json").read_text())
    assert {name: adapter[name] for name in receipt["base"]} == receipt["base"]


def test_its_card_and_report_name_the_scores(folder, tiny_llama):
    results = json.loads((folder / "results.json").read_text())
    card = (folder / "adapter" / "README.md").read_text()
    report = (folder / "report.html").read_text()
    assert card.startswith("---\n")
    assert str(tiny_llama) in card
    for text in (card, report):
        assert f"{results['adapter']['perplexity']:.4g}" in text
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert "<script src" not in report


def test_its_adapter_loads_in_peft_and_gives_our_logits(folder, tiny_llama):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from topcoat.adapters.files import load_adapter

    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), folder / "adapter")
    base = load_model(ModelSettings(path=str(tiny_llama), compute_dtype="fp32"))
    load_adapter(base.model, folder / "adapter", base.identity.model_dump())
    ids = torch.tensor(json.loads((folder / "probe.json").read_text())["prompts"][:1])
    with torch.no_grad():
        torch.testing.assert_close(base.model(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)


def test_a_fully_trained_model_loads_in_transformers(tiny_recipe, train, tiny_llama):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = tiny_recipe()
    recipe["adapter"] = {"method": "full"}
    result = train(recipe)
    assert result.adapter == result.folder / "model"
    trained = AutoModelForCausalLM.from_pretrained(result.adapter)
    AutoTokenizer.from_pretrained(result.adapter)
    before = load_file(tiny_llama / "model.safetensors")
    assert all(not torch.equal(before[name], p) for name, p in trained.state_dict().items() if name in before)
    last = load_file(result.folder / "checkpoints" / "step-00000008" / "adapter.safetensors")
    assert all(torch.equal(last[name], p) for name, p in trained.named_parameters())


def test_the_best_checkpoint_is_delivered_when_the_loss_rises(tiny_recipe, train, ear):
    recipe = tiny_recipe(
        train={"max_steps": 24, "learning_rate": 0.05, "lr_scheduler_type": "constant"}, evaluate={"every": 3}
    )
    listener = ear()
    result = train(recipe, listener=listener)
    losses = {
        r["step"]: r["validation_loss"] for r in read_metrics(result.folder / "metrics.jsonl") if "validation_loss" in r
    }
    best = min(losses, key=losses.__getitem__)
    assert best < 24, "the recipe of this test must overfit"
    assert json.loads((result.folder / "results.json").read_text())["best_step"] == best
    assert any(
        text.startswith(f"the adapter is that of step {best}, the lowest validation loss") for text in listener.heard
    )
    kept = load_file(result.folder / "checkpoints" / f"step-{best:08d}" / "adapter.safetensors")
    saved = load_file(result.adapter / "adapter_model.safetensors")
    assert all(torch.equal(saved[f"base_model.model.{name}.weight"], tensor) for name, tensor in kept.items())
    assert result.tuned.perplexity == pytest.approx(torch.tensor(losses[best]).exp().item(), rel=1e-4)


def test_early_stopping_stops_and_delivers_the_best(tiny_recipe, train):
    recipe = tiny_recipe(
        train={
            "max_steps": 60,
            "learning_rate": 0.05,
            "lr_scheduler_type": "constant",
            "early_stopping_patience": 2,
        },
        evaluate={"every": 2},
    )
    result = train(recipe)
    results = json.loads((result.folder / "results.json").read_text())
    assert results["ended"] == "early stopping"
    assert result.steps == results["best_step"] + 4 < 60


def test_it_trains_outside_the_main_thread(tiny_recipe, train, trace):
    expected = trace(train(tiny_recipe("main")).folder)
    results = []
    thread = threading.Thread(target=lambda: results.append(train(tiny_recipe("thread"))))
    thread.start()
    thread.join()
    [result] = results
    assert trace(result.folder) == expected


def test_torch_s_random_state_and_threads_are_left_as_they_were(tiny_recipe, train):
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train(tiny_recipe(adapter={"lora_dropout": 0.1}))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_full_fine_tuning_in_half_precision_learns_in_fp32_masters(tiny_recipe, train, dtype):
    recipe = tiny_recipe(model={"compute_dtype": dtype}, train={"max_steps": 4, "learning_rate": 2e-3})
    recipe["adapter"] = {"method": "full"}
    done = train(recipe)
    losses = [row["loss"] for row in read_metrics(Path(recipe["output"]) / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < losses[0]
    assert done.steps == 4
