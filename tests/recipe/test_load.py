"""Reading recipes: what is accepted, and what every refusal says."""

import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from topcoat.adapters.settings import FullConfig, LoraConfig
from topcoat.errors import TopcoatError
from topcoat.quant.settings import Int8Config, Nf4Config
from topcoat.recipe.fields import accepts, choices, dotted, leaves, sections
from topcoat.recipe.load import dump_recipe, load_recipe, recipe_from_dict, recipe_from_dict_with_notes
from topcoat.recipe.schema import Recipe
from topcoat.train.settings import TrainSettings

SMALL = {"model": "x/y", "data": "rows.jsonl", "output": "runs/x"}
LEAVES = sorted(leaves())
NUMBERS = [path for path in LEAVES if accepts(path, "number") and not choices(path)] + [
    path for path in LEAVES if accepts(path, "number") and choices(path) == ["auto"]
]


def with_value(path: tuple[str, ...], value: object) -> dict:
    """SMALL as sections, with `value` at `path` and the tag its section needs."""
    tree: dict = {"model": {"path": "x/y"}, "data": {"train": "rows.jsonl"}, "output": "runs/x"}
    into = tree
    for part in path[:-1]:
        into = into.setdefault(part, {})
    if path[:-1] == ("model", "quantization"):
        into["format"] = "nf4"
    into[path[-1]] = value
    return tree


def problems(values: dict) -> list[str]:
    with pytest.raises(TopcoatError) as caught:
        recipe_from_dict(values, check_files=False)
    return [str(problem) for problem in caught.value.problems]


def test_a_short_recipe_has_every_default(load):
    recipe, notes = load("")
    assert (recipe.model.path, recipe.data.train, recipe.output) == ("./base", "tickets.jsonl", "runs/tickets")
    assert recipe.adapter == LoraConfig()
    assert recipe.train == TrainSettings()
    assert notes == []


def test_the_recipe_of_the_design_loads(load):
    text = """\
        model: {path: ./base, quantization: {format: nf4, double_quant: true}}
        adapter: {method: lora, r: 16, lora_alpha: 32, target_modules: all-linear}
        data: {train: tickets.jsonl, validation: 0.1, max_length: 1024}
        train: {epochs: 3, learning_rate: auto}
        evaluate: {metrics: [exact_match], every: 50}
        output: runs/tickets
    """
    recipe, notes = load(textwrap.dedent(text), base="")
    assert recipe.model.quantization == Nf4Config()
    assert recipe.evaluate.metrics == ["exact_match"]
    assert notes == []


# Unknown keys


@pytest.mark.parametrize("path", LEAVES, ids=dotted)
@pytest.mark.parametrize("slip", ["swapped", "dropped", "doubled", "shouted"])
def test_every_setting_misspelt_is_suggested(path, slip):
    key = path[-1]
    wrong = {
        "swapped": key[:-2] + key[-1:] + key[-2:-1],
        "dropped": key[: len(key) // 2] + key[len(key) // 2 + 1 :],
        "doubled": key[:1] + key,
        "shouted": key.upper(),
    }[slip]
    if len(key) == 1:
        wrong = key.upper()  # one letter has no other slip that still is it
    if wrong == key:  # a doubled letter swapped
        wrong = key + "s"
    tree = with_value((*path[:-1], wrong), 1)
    said = [text for text in problems(tree) if f"unknown setting {dotted((*path[:-1], wrong))}\n" in text]
    assert len(said) == 1
    assert key in said[0].split("fix:")[1].replace("?", " ").split()


@settings(max_examples=150, deadline=None)
@given(
    path=st.sampled_from([p for p in LEAVES if len(p[-1]) >= 6]), at=st.integers(0, 30), letter=st.sampled_from("xz_")
)
def test_one_wrong_letter_anywhere_is_suggested(path, at, letter):
    key = path[-1]
    wrong = key[: at % len(key)] + letter + key[at % len(key) + 1 :]
    assume(wrong not in sections()[path[:-1]].keys and wrong.strip("_") == wrong)
    said = "\n".join(problems(with_value((*path[:-1], wrong), 1)))
    assert key in said


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("train: {lora_r: 8}", "lora_r belongs in adapter, as r"),
        ("train: {r: 8}", "r belongs in adapter, as r"),
        ("adapter: {learning_rate: 1}", "learning_rate belongs in train, as learning_rate"),
        ("every: 8", "every belongs in evaluate, as every"),
        ("adapter: {per_device_train_batch_size: 1}", "per_device_train_batch_size belongs in train, as batch_size"),
        ("train: {lerning_rate: 1}", "did you mean learning_rate?"),
        ("adapter: {lerning_rate: 1}", "did you mean learning_rate? It belongs in train, as learning_rate"),
        ("lora: {r: 8}", "the section is called adapter"),
        ("traning: {epochs: 3}", "did you mean train?"),
        ("quantization: {format: nf4}", "the section is called model.quantization"),
        ("xyzzy: 3", "a recipe has model, adapter, data, train, evaluate, output, seed"),
        ("evaluate: {xyzzy: 3}", "evaluate has metrics, every, rows, max_new_tokens, samples"),
    ],
)
def test_an_unknown_setting_says_where_it_belongs(refused, text, fix):
    [(what, where, said)] = refused(text)
    assert what.startswith("unknown setting ")
    assert where == "r.yaml line 4"
    assert said == fix


def test_a_setting_of_another_method_says_whose_it_is(refused):
    [(what, where, fix)] = refused("adapter:\n  method: full\n  r: 8\n")
    assert what == "adapter.r is a setting of method lora; this recipe has method full"
    assert where == "r.yaml line 6"
    assert fix == "take it out, or write method: lora"


# Values


@pytest.mark.parametrize("path", NUMBERS, ids=dotted)
def test_every_number_is_checked(path):
    name = dotted(path)
    for wrong in (math.nan, math.inf, -math.inf, -1, "nan", True):
        said = [text for text in problems(with_value(path, wrong)) if text.startswith(f"{name} is ")]
        assert len(said) == 1, (name, wrong)
        assert "; expected a " in said[0]
    if not accepts(path, "string") or choices(path):
        [said] = [
            text for text in problems(with_value(path, "abc")) if text.startswith(f"{name} is 'abc'; expected a ")
        ]
        assert "number" in said.split("\n")[0]


@pytest.mark.parametrize("path", NUMBERS, ids=dotted)
def test_a_number_in_quotes_is_read_as_one(path):
    wanted = {"data.max_length": "64", "train.adam_epsilon": "1e-4"}.get(dotted(path))
    wanted = wanted or ("1e1" if accepts(path, "integer") else "1e-4")
    recipe, notes = recipe_from_dict_with_notes(with_value(path, wanted), check_files=False)
    value = recipe
    for part in path:
        value = getattr(value, part)
    assert value == float(wanted)
    assert type(value) is (int if accepts(path, "integer") else float)
    assert any(note.startswith(f"{dotted(path)}: '{wanted}' (python) is text; read as the number") for note in notes)


def test_a_number_with_an_exponent_is_a_number(load):
    recipe, notes = load("train: {learning_rate: 1e-4, batch_size: 1.6e1}")
    assert recipe.train.learning_rate == 1e-4
    assert recipe.train.batch_size == 16
    assert notes == []


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        (
            "train: {learning_rate: fast}",
            "train.learning_rate is 'fast'; expected a number above 0 and below 1, or auto",
            "leave it out for the default, auto. Peak learning rate.",
        ),
        (
            "train: {learning_rate: 2}",
            "train.learning_rate is 2; expected a number above 0 and below 1, or auto",
            "leave it out for the default, auto. Peak learning rate.",
        ),
        (
            "train: {weight_decay: -1}",
            "train.weight_decay is -1; expected a number of at least 0 and at most 1",
            "leave it out for the default, 0. Decoupled decay of AdamW.",
        ),
        (
            "train: {batch_size: 2.5}",
            "train.batch_size is 2.5; expected a whole number of at least 1",
            "leave it out for the default, 16. Examples in one optimizer step.",
        ),
        (
            "train: {epochs: }",
            "train.epochs is empty; expected a number above 0",
            "leave it out for the default, 3. Passes over the training examples; a fraction stops inside one.",
        ),
        (
            "train: {lr_scheduler_type: cosin}",
            "train.lr_scheduler_type is 'cosin'; expected one of cosine, linear, constant",
            "did you mean cosine?",
        ),
        (
            "train: {gradient_checkpointing: yes}",
            "train.gradient_checkpointing is 'yes'; expected true or false",
            "write gradient_checkpointing: true",
        ),
        (
            "train: {gradient_checkpointing: OFF}",
            "train.gradient_checkpointing is 'OFF'; expected true or false",
            "write gradient_checkpointing: false",
        ),
        (
            "train: {gradient_checkpointing: 1}",
            "train.gradient_checkpointing is 1; expected true or false",
            "leave it out for the default, false. Recompute each block's activations in the backward: about a third "
            "less speed for much less memory.",
        ),
        (
            "train: {warmup_ratio: 10}",
            "train.warmup_ratio is 10; expected a number of at least 0 and below 1",
            "a number of steps is warmup_steps: 10",
        ),
        (
            "train: {warmup_steps: 0.1}",
            "train.warmup_steps is 0.1; expected a whole number of at least 0, or null",
            "a share of the steps is warmup_ratio: 0.1",
        ),
        (
            "train: {max_grad_norm: 0}",
            "train.max_grad_norm is 0; expected a number above 0, or null",
            "write max_grad_norm: null for none",
        ),
        (
            "adapter: {target_modules: q_proj}",
            "adapter.target_modules is 'q_proj'; expected a list of names such as [q_proj, v_proj], or all-linear",
            "write target_modules: [q_proj]",
        ),
        (
            "adapter: {target_modules: all-liner}",
            "adapter.target_modules is 'all-liner'; expected a list of names such as [q_proj, v_proj], or all-linear",
            "did you mean all-linear?",
        ),
        ("adapter: {method: loraa}", "adapter.method is 'loraa'; expected one of lora, full", "did you mean lora?"),
        (
            "evaluate: {metrics: [perplexty]}",
            "evaluate.metrics is [perplexty]; expected a list of these: perplexity, exact_match",
            "did you mean perplexity?",
        ),
        (
            "train: {batch_size: [1, 2]}",
            "train.batch_size is [1, 2]; expected a whole number of at least 1",
            "leave it out for the default, 16. Examples in one optimizer step.",
        ),
        ("seed: 2024-01-01", "seed is 2024-01-01; expected a whole number of at least 0 and below 2147483648", None),
        (
            "train: 5",
            "train is 5; expected a section of settings: " + ", ".join(TrainSettings.model_fields),
            "write them below it, indented:\n           train:\n             epochs: …",
        ),
    ],
)
def test_a_wrong_value_says_what_it_is_and_what_is_expected(refused, text, what, fix):
    [(said, where, advice)] = refused(text)
    assert said == what
    assert where == "r.yaml line 4"
    assert fix is None or advice == fix


def test_every_expected_value_can_be_said():
    for path in leaves():
        said = problems(with_value(path, {"no": "such"} if dotted(path) != "data.columns" else 3))
        assert any(
            "; expected " in text and "{" not in text.split("; expected ")[1].split("such as")[0] for text in said
        )


def test_text_where_a_number_stands_is_told_to_be_quoted(refused):
    base = "model: {path: 3}\ndata: {train: tickets.jsonl, columns: {prompt: 3}}\noutput: 2024\n"
    said = refused("", base=base)
    assert ("model.path is 3; expected text", "r.yaml line 1", "put it in quotes if it is meant: path: '3'") in said
    assert ("output is 2024; expected text", "r.yaml line 3", "put it in quotes if it is meant: output: '2024'") in said
    assert said[1][0] == "data.columns.prompt is 3; expected the name of a column"


def test_missing_settings_are_named(refused):
    assert refused("", base="model: {}\ntrain: {epochs: 1}\n") == [
        (
            "model.path is missing",
            "r.yaml line 1",
            "write path: … under model. A directory in Hugging Face layout, a .gguf file, or a hub id such as "
            "HuggingFaceTB/SmolLM2-135M-Instruct.",
        ),
        (
            "data.train is missing",
            "r.yaml line 1",
            "write train: … under data. A file of rows: .jsonl, .json, .csv, .tsv, .parquet, or one of these with .gz "
            "behind it.",
        ),
        (
            "output is missing",
            "r.yaml line 1",
            "write output: …. Folder of the run; made if it is not there, refused if it holds another run.",
        ),
    ]


def test_an_empty_section_is_its_defaults(load):
    assert load("train:\nadapter:\n")[0].train == TrainSettings()


def test_a_huge_number_is_refused(refused):
    [(what, _, _)] = refused(f"train: {{max_grad_norm: {'9' * 400}}}")
    assert what.startswith("train.max_grad_norm is 999")


# Everything at once


def test_all_problems_are_said_at_once_with_their_lines(refused):
    text = """\
        adapter:
          r: 0
          lora_alph: 32
        train:
          epochs: .nan
          learning_rate: fast
          warmup_ratio: 0.1
          warmup_steps: 10
          logging_steps: 5
        evaluate: {metrics: [bleu]}
        max_seq_length: 4
    """
    base = "model: ./bose\ndata: {train: ticket.jsonl, packing: on}\n"
    said = refused(textwrap.dedent(text), base=base)
    lines = [int(where.rsplit(" ", 1)[1]) for _, where, _ in said]
    assert lines == sorted(lines)
    found = {(what.split(";")[0].split(":")[0], line) for (what, _, _), line in zip(said, lines, strict=True)}
    assert found == {
        ("output is missing", 1),
        ("model is ./bose, which is not there", 1),
        ("data.packing is 'on'", 2),
        ("data.train is ticket.jsonl, which is not there", 2),
        ("adapter.r is 0", 4),
        ("unknown setting adapter.lora_alph", 5),
        ("train.epochs is nan", 7),
        ("train.learning_rate is 'fast'", 8),
        ("train.warmup_ratio (r.yaml line 9) and train.warmup_steps are both written", 10),
        ("train.logging_steps has no meaning here", 11),
        ("evaluate.metrics is [bleu]", 12),
        ("max_seq_length (data.max_length) is 4", 13),
    }


def test_no_message_speaks_pydantic(refused):
    text = "adapter: {method: 3, r: []}\ntrain: {epochs: {}, report_to: [3], max_steps: x}\n"
    text += "model: {quantization: {format: 5}}\n"
    said = refused(text, base="data: [1]\noutput: null\n")
    spoken = "\n".join(" ".join(problem) for problem in said).lower()
    for word in ("input should", "pydantic", "discriminator", "literal", "constrained", "validation error", "type="):
        assert word not in spoken


# YAML


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("train: {epochs: 1}\ntrain: {epochs: 2}", "train is written twice: first on line 4", 5),
        ("train: {epochs: 1, epochs: 2}", "train.epochs is written twice: first on line 4", 4),
        ("train:\n\tepochs: 1", "a tab indents this line", 5),
        ("train: [1", "this is not YAML: ", 4),
        ("train: {epochs: 1}}", "this is not YAML: ", 4),
        ("---\nmodel: x", "--- starts a second document", 4),
        ("train: !!python/object/apply:os.system ['id']", "the tag ", 4),
        ("seed: !secret 3", "the tag !secret has no use in a recipe", 4),
    ],
)
def test_yaml_errors_name_the_line(refused, text, what, line):
    [(said, where, fix)] = refused(text)
    assert said.startswith(what)
    assert where == f"r.yaml line {line}"
    assert fix


def test_aliases_may_be_used_and_may_not_explode(load, refused):
    recipe, _ = load("evaluate: {every: &often 50}\ntrain: {save_every: *often}")
    assert recipe.train.save_every == 50
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for name, inner in zip("bcdefgh", "abcdefg", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{inner}'] * 9)}]\n"
    [(what, _, _)] = refused(bomb)
    assert what == "an alias (*name) repeats itself without end"
    for deep in ("train: " + "[" * 5000, "\n".join(" " * depth + "a:" for depth in range(340))):
        [(what, _, _)] = refused(deep)
        assert what == "the text nests too deeply"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "the recipe is empty"),
        (b"# nothing\n", "the recipe is empty"),
        (b"hello", "r.yaml is no recipe: it has no `key: value` lines"),
        (b"- a\n- b", "r.yaml is no recipe: it has no `key: value` lines"),
        (b"model: \xff\xfe", "this is not UTF-8 text"),
        (b"model: \x01", "this is not YAML text: unacceptable character #x0001: special characters are not allowed"),
        (b"x" * (2**16 + 1), "r.yaml is 64.0 KiB; a recipe is a short YAML file"),
    ],
)
def test_a_file_that_is_no_recipe_is_said_to_be_none(desk, content, what):
    (desk / "r.yaml").write_bytes(content)
    with pytest.raises(TopcoatError) as caught:
        load_recipe(Path("r.yaml"))
    assert caught.value.problems[0].what == what


def test_a_recipe_may_begin_with_a_byte_order_mark(desk):
    (desk / "r.yaml").write_text("\ufeffmodel: ./base\ndata: tickets.jsonl\noutput: o\n", encoding="utf-8")
    assert load_recipe(Path("r.yaml")).output == "o"


def test_a_recipe_that_is_not_there_is_told_by_near_names(desk):
    (desk / "tickets.yaml").write_text("x")
    for name, fix in (("ticket.yaml", "did you mean tickets.yaml?"), ("base", "base has config.json")):
        with pytest.raises(TopcoatError) as caught:
            load_recipe(Path(name))
        assert caught.value.problems[0].fix == fix


# Contradictions and files


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
            "val_set_size: 0\neval_steps: 5",
            "eval_steps is 5, but data.validation is null: there is nothing to evaluate",
        ),
        ("val_set_size: 0\nearly_stopping_patience: 2", "early_stopping_patience is 2, but data.validation is null"),
        (
            "val_set_size: 0\nevaluate: {metrics: [exact_match]}",
            "evaluate.metrics is [exact_match], but data.validation is null",
        ),
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
            "the current directory has base, folder, held.jsonl, notes.txt, r.yaml, tickets.jsonl",
        ),
        (
            "model: folder\ndata: tickets.jsonl",
            "model is folder, which has no config.json",
            "name the file itself: folder/x.gguf",
        ),
        (
            "model: notes.txt\ndata: tickets.jsonl",
            "model is notes.txt, which is not a .gguf file",
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
            "model: ./base\ndata: notes.txt",
            "data is notes.txt, whose ending names no known kind of rows",
            "endings read: .jsonl, .json, .csv, .tsv, .parquet, each also with .gz behind it",
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
    (desk / "notes.txt").write_text("")
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


# Overrides


def test_overrides_win_over_the_file_under_any_name(load):
    text = "lr: 1e-3\ntrain: {num_train_epochs: 5, batch_size: 4}\n"
    recipe, notes = load(
        text,
        "learning_rate=2e-4",
        "train.epochs=1",
        "train.batch_tokens=512",
        "adapter.target_modules=[q_proj, up_proj]",
    )
    assert (recipe.train.learning_rate, recipe.train.epochs, recipe.train.batch_tokens) == (2e-4, 1, 512)
    assert recipe.adapter.target_modules == ["q_proj", "up_proj"]
    assert "override train.batch_tokens=512 replaces train.batch_size (r.yaml line 5)" in notes


def test_an_override_that_picks_another_method_drops_what_that_method_lacks(load):
    recipe, notes = load("adapter: {method: lora, r: 8}\n", "adapter.method=full")
    assert recipe.adapter == FullConfig()
    assert notes == ["override adapter.method=full replaces adapter.r (r.yaml line 4)"]
    recipe, _ = load(
        "model: {path: ./base, quantization: {format: nf4, block_size: 32}}\n",
        "model.quantization=int8",
        base="data: tickets.jsonl\noutput: o\n",
    )
    assert recipe.model.quantization == Int8Config()
    recipe, _ = load("adapter: qlora\n", "model.quantization=null")
    assert recipe.model.quantization is None


def test_an_override_may_add_one_column(load):
    assert load("", "data.columns.prompt=question")[0].data.columns == {"prompt": "question"}


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("train.epochs", "'train.epochs' is no override"),
        ("=3", "'=3' is no override"),
        ("train..epochs=3", "'train..epochs=3' is no override"),
        ("train.epoch=3", "unknown setting train.epoch"),
        ("train.epochs=fast", "train.epochs is 'fast'; expected a number above 0"),
        ("train.epochs=", "train.epochs is empty; expected a number above 0"),
        ("train.epochs=[1", "this is not YAML: expected ',' or ']', but got '<stream end>', at '[1'"),
        ("logging_steps=3", "logging_steps has no meaning here: every step is logged to metrics.jsonl"),
        ("data.columns={a: b, a: c}", "a is written twice: first on line 1"),
    ],
)
def test_a_wrong_override_is_named(refused, override, what):
    [(said, where, fix)] = refused("", override)
    assert (said, where) == (what, f"override {override}")
    assert fix


def test_an_override_given_twice_is_refused(refused):
    [(what, _, _)] = refused("", "train.epochs=1", "num_epochs=2")
    assert what == "num_epochs and train.epochs (override train.epochs=1) both set train.epochs"


# Warnings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adapter: {r: 4, lora_alpha: 33}", "adapter.lora_alpha 33 / r 4 = 8.25 is outside 0.25 to 8"),
        ("adapter: {r: 64, lora_alpha: 15}", "adapter.lora_alpha 15 / r 64 = 0.234 is outside 0.25 to 8"),
        ("adapter: {r: 128, lora_alpha: 128}", "adapter.r is 128: above 64"),
        ("adapter: {target_modules: [q_proj, v_proj]}", "adapter.target_modules has attention layers only"),
        ("lr: 0.01", "train.learning_rate is 0.01: LoRA usually takes 1e-5 to 5e-3"),
        ("lr: 1e-3\nadapter: full", "train.learning_rate is 0.001: full tuning usually takes 1e-5 to 2e-5"),
        ("num_epochs: 10", "train.epochs is 10: beyond 3"),
        ("batch_size: 256", "train.batch_size is 256: LoRA learns less"),
        ("adapter: qlora\nfp16: true", "model.compute_dtype fp16 on nf4 weights is unstable"),
    ],
)
def test_doubtful_settings_are_warned_of_and_done(load, text, said):
    _, notes = load(text)
    assert [note for note in notes if note.startswith(f"warning: {said}")]


def test_usual_settings_are_not_warned_of(load):
    text = "adapter: {r: 64, lora_alpha: 16}\ntrain: {epochs: 3, learning_rate: 2e-4, batch_size: 128}\n"
    assert load(text)[1] == []
    assert load("adapter: {r: 256, lora_alpha: 16, use_rslora: true}")[1] == []


# Python and YAML out


def test_settings_objects_may_stand_in_a_dict():
    values = {"model": "x/y", "data": {"train": Path("rows.jsonl")}, "output": "o", "adapter": FullConfig()}
    recipe = recipe_from_dict(values | {"train": TrainSettings(batch_tokens=512)}, check_files=False)
    assert recipe.adapter == FullConfig()
    assert recipe.train.batch_tokens == 512
    assert recipe_from_dict(values | {"adapter": LoraConfig(r=4)}, check_files=False).adapter.r == 4


def test_a_dict_says_where_it_came_from():
    with pytest.raises(TopcoatError) as caught:
        recipe_from_dict({**SMALL, "train": {"epoch": 1}}, check_files=False)
    assert caught.value.problems[0].where == "python"


def test_the_dump_has_every_value():
    text = dump_recipe(recipe_from_dict({**SMALL, "model": {"path": "x/y", "quantization": "nf4"}}, check_files=False))
    values = YAML(typ="safe").load(text)
    for path in leaves():
        into = values
        for part in path:
            assert part in into, path
            into = into[part]


LETTERS = st.characters(exclude_categories=["Cs", "Cc", "Cn"])
WORDS = st.text(LETTERS, min_size=1, max_size=20)


@st.composite
def recipes(draw) -> Recipe:
    def number(low: float, high: float) -> st.SearchStrategy[float]:
        return st.floats(low, high, exclude_min=True, exclude_max=True)

    lora = st.builds(
        LoraConfig,
        r=st.integers(1, 512),
        lora_alpha=number(0, 1e6),
        lora_dropout=number(0, 1),
        use_rslora=st.booleans(),
        target_modules=st.just("all-linear") | st.lists(WORDS),
        modules_to_save=st.lists(WORDS, max_size=2),
    )
    values = {
        "model": {
            "path": draw(WORDS),
            "quantization": draw(
                st.none() | st.builds(Nf4Config, block_size=st.sampled_from([32, 64]), double_quant=st.booleans())
            ),
            "device": draw(st.sampled_from(["auto", "cpu", "cuda:1"])),
            "chat_template": draw(st.none() | WORDS),
        },
        "adapter": draw(lora),
        "data": {
            "train": draw(WORDS),
            "validation": draw(st.none() | number(0, 1)),
            "columns": draw(st.dictionaries(st.sampled_from(["prompt", "completion", "text"]), WORDS)),
            "max_length": draw(st.just("auto") | st.integers(8, 2**40)),
        },
        "train": {
            "epochs": draw(number(0, 1e9)),
            "learning_rate": draw(st.just("auto") | number(0, 1)),
            "adam_epsilon": draw(number(0, 1)),
            "max_grad_norm": draw(st.none() | number(0, 1e300)),
            "report_to": draw(st.lists(st.sampled_from(["wandb", "tensorboard"]))),
            **draw(st.sampled_from([{"batch_tokens": 512}, {"batch_size": 7}, {}])),
            **draw(st.sampled_from([{"warmup_steps": 0}, {"warmup_ratio": 0.5}, {}])),
        },
        "output": draw(WORDS),
        "seed": draw(st.integers(0, 2**31 - 1)),
    }
    return Recipe.model_validate(values)


@settings(max_examples=150, deadline=None)
@given(recipe=recipes())
def test_a_dumped_recipe_loads_to_the_same(tmp_path_factory, recipe):
    file = tmp_path_factory.getbasetemp() / "dumped.yaml"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(file, check_files=False) == recipe


@pytest.mark.parametrize(
    "word", ["null", "true", "yes", "1e-4", "2024-01-01", "a: b", "#x", " x ", "~", "- a", "@x", "é\u2028x", "a\nb"]
)
def test_awkward_words_survive_the_dump(desk, word):
    recipe = recipe_from_dict({**SMALL, "output": word}, check_files=False)
    (desk / "r.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(Path("r.yaml"), check_files=False).output == word


def test_reading_a_wrong_recipe_imports_no_torch(desk):
    (desk / "r.yaml").write_text("model: ./nowhere\ntrain: {lerning_rate: 1}\n")
    code = """if True:
        import sys
        from pathlib import Path
        from topcoat.errors import TopcoatError
        from topcoat.recipe.load import load_recipe
        try:
            load_recipe(Path("r.yaml"))
        except TopcoatError as error:
            assert len(error.problems) == 4, error
        print(sorted({"torch", "transformers", "numpy"} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
