"""Settings that cannot both be meant, and named files that are not there."""

from pathlib import Path

import pytest

from topcoat.recipe.load import load_recipe
from topcoat.recipe.named_files import near_names


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            "train: {batch_size: 4, batch_tokens: 999}",
            "train.batch_size (r.yaml line 4) and train.batch_tokens are both written",
        ),
        (
            "train: {warmup_ratio: 0.1, warmup_steps: 5}",
            "train.warmup_ratio (r.yaml line 4) and train.warmup_steps are both",
        ),
        (
            "adapter: full\nload_in_4bit: true",
            "load_in_4bit is nf4 with adapter.method full: rounded weights cannot be trained",
        ),
        (
            "load_in_4bit: true\nadapter: {init_lora_weights: pissa_niter_4}",
            "adapter.init_lora_weights is pissa_niter_4, and model.quantization.format is nf4: it takes its start from",
        ),
        (
            "adapter: {init_lora_weights: loftq}",
            "adapter.init_lora_weights is loftq, and model.quantization is not written: it repairs what rounding lost",
        ),
        ("adapter: qalora", "adapter is qalora, and model.quantization is not written: it needs integer weights"),
        (
            "load_in_4bit: true\nadapter: {method: qalora}",
            "adapter.method is qalora, and model.quantization.format is nf4: it needs integer weights",
        ),
        (
            "val_set_size: 0\neval_steps: 5",
            "eval_steps is 5, but data.validation is null: there is nothing to evaluate",
        ),
        ("val_set_size: 0\nearly_stopping_patience: 2", "early_stopping_patience is 2, but data.validation is null"),
        (
            "val_set_size: 0\nevaluate: {metrics: [exact_match]}",
            "evaluate.metrics is [exact_match], but data.validation is null",
        ),
        ("train: {optimizer_folder: /fast}", "train.optimizer_folder is written, but only paged_adamw keeps a file"),
        ("revision: main", "revision is 'main', but ./base is a local path"),
    ],
)
def test_contradictions_are_refused(refused, text, what):
    [(said, where, fix)] = refused(text)
    assert said.startswith(what)
    assert where in ("r.yaml line 4", "r.yaml line 5")
    assert fix


def test_null_contradicts_nothing(load):
    recipe, _ = load("train: {batch_size: 4, batch_tokens: null, warmup_ratio: 0.1, warmup_steps: null}")
    assert recipe.train.batch_size == 4


@pytest.mark.parametrize(
    ("base", "what", "fix"),
    [
        (
            "model: ./bass\ndata: tickets.jsonl",
            "model is ./bass, which is not there; expected a model directory or a .gguf file",
            "did you mean base?",
        ),
        (
            "model: base/none\ndata: tickets.jsonl",
            "model is base/none, which is not there; expected a model directory or a .gguf file",
            "base has config.json",
        ),
        (
            "model: tiny.gguf\ndata: tickets.jsonl",
            "model is tiny.gguf, which is not there; expected a model directory or a .gguf file",
            "the current directory has base, folder, held.jsonl, notes.rtf, r.yaml, tickets.jsonl",
        ),
        (
            "model: folder\ndata: tickets.jsonl",
            "model is folder, which has no config.json",
            "name the file itself: folder/x.gguf",
        ),
        (
            "model: notes.rtf\ndata: tickets.jsonl",
            "model is notes.rtf, which is not a .gguf file",
            "name its folder: .",
        ),
        (
            "model: ./base\ndata: tickts.jsonl",
            "data is tickts.jsonl, which is not there; expected a file of rows",
            "did you mean tickets.jsonl?",
        ),
        (
            "model: ./base\ndata: no/such/tickets.jsonl",
            "data is no/such/tickets.jsonl, which is not there; expected a file of rows",
            None,
        ),
        (
            "model: ./base\ndata: notes.rtf",
            "data is notes.rtf, whose ending names no known kind of rows",
            "endings read: .jsonl, .json, .csv, .tsv, .parquet, .txt, .md, each also with .gz, .bz2, .xz or .zst "
            "behind it",
        ),
        ("model: ./base\ndata: .", "data is ., which is a folder", "name one file, such as held.jsonl"),
        (
            "model: ./base\ndata: {train: tickets.jsonl, validation: hold.jsonl}",
            "data.validation is hold.jsonl, which is not there; expected a file of rows",
            "did you mean held.jsonl?",
        ),
        (
            "model: ./base\ndata: {train: tickets.jsonl, validation: ./tickets.jsonl}",
            "data.validation is the training file itself, ./tickets.jsonl: every score would be a memory test",
            "name other rows, or a share such as 0.1",
        ),
        (
            "model: {path: ./base, chat_template: chatml}\ndata: tickets.jsonl",
            "model.chat_template is chatml, which is not there; expected a file with a Jinja chat template",
            None,
        ),
    ],
)
def test_missing_files_are_told_by_near_names(desk, refused, base, what, fix):
    (desk / "folder").mkdir()
    (desk / "folder" / "x.gguf").write_text("")
    (desk / "notes.rtf").write_text("")
    [(said, where, advice)] = refused("", base=base + "\noutput: o\n")
    assert said == what
    assert where in ("r.yaml line 1", "r.yaml line 2")
    assert fix is None or advice == fix


def test_a_home_folder_is_not_guessed(refused):
    [(what, _, fix)] = refused("", base="model: ~/models/base\ndata: tickets.jsonl\noutput: o\n")
    assert what.startswith("model is ~/models/base, which is not there")
    assert fix == f"~ is not read in a recipe; write {Path('~/models/base').expanduser()}"


def test_the_output_may_not_be_a_file(refused):
    [(what, where, _)] = refused("", base="model: ./base\ndata: tickets.jsonl\noutput: held.jsonl\n")
    assert (what, where) == ("output is held.jsonl, which is a file", "r.yaml line 3")


def test_a_hub_id_is_not_looked_for_on_disk(load):
    assert load("", base="model: org/name\ndata: tickets.jsonl\noutput: o\n")[0].model.path == "org/name"


def test_files_of_a_recipe_read_elsewhere_may_be_gone(desk):
    (desk / "r.yaml").write_text("model: ./gone\ndata: gone.jsonl\noutput: o\n")
    assert load_recipe(Path("r.yaml"), check_files=False).model.path == "./gone"


def test_an_ending_alone_makes_no_name_near(desk):
    (desk / "alpaca.jsonl").write_text("{}\n")
    assert "did you mean" not in near_names(Path("nope.jsonl"))
    assert "alpaca.jsonl" in near_names(Path("nope.jsonl"))  # it is listed, with what else is there
    assert near_names(Path("alpcaa.jsonl")) == "did you mean alpaca.jsonl?"
