"""Reading recipes from files, dicts and overrides, and writing them out again."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from topcoat.adapters.settings import FullConfig, LoraConfig, QaloraConfig
from topcoat.errors import TopcoatError
from topcoat.quant.settings import Int8Config, Nf4Config
from topcoat.recipe.fields import leaves, sections
from topcoat.recipe.load import dump_recipe, load_recipe, recipe_from_dict
from topcoat.recipe.schema import Recipe
from topcoat.training.settings import TrainSettings

SMALL = {"model": "x/y", "data": "rows.jsonl", "output": "runs/x"}


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
    dumps = []
    for tagged in (section for section in sections().values() if section.tag is not None):
        for kind in tagged.variants:
            recipe = {**SMALL, "model": {"path": "x/y"}, "adapter": {"method": "lora"}}
            if kind is QaloraConfig:
                recipe["model"]["quantization"] = {"format": "int4"}  # what it stands on
            *outer, last = tagged.path
            into = recipe
            for part in outer:
                into = into[part]
            needed = {name: "x" for name, field in kind.model_fields.items() if field.is_required()}
            into[last] = {**needed, tagged.tag: kind.model_fields[tagged.tag].default}
            text = dump_recipe(recipe_from_dict(recipe, check_files=False))
            dumps.append(YAML(typ="safe").load(text))
    for path in leaves():
        assert any(reaches(values, path) for values in dumps), path


def reaches(values, path):
    for part in path:
        if part not in values:
            return False
        values = values[part]
    return True


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
    "word",
    [
        "null",
        "true",
        "yes",
        "1e-4",
        "2024-01-01",
        "a: b",
        "#x",
        " x ",
        "~",
        "- a",
        "@x",
        "é\u2028x",
        "a\nb",
        "?0",
        "x?",
    ],
)
def test_awkward_words_survive_the_dump(desk, word):
    recipe = recipe_from_dict({**SMALL, "output": word}, check_files=False)
    (desk / "r.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(Path("r.yaml"), check_files=False).output == word


@pytest.mark.parametrize("word", ["?0", "? x", "a?b", "?", "x: ?0"])
def test_awkward_words_survive_the_dump_in_a_list(desk, word):
    recipe = recipe_from_dict({**SMALL, "adapter": {"method": "lora", "target_modules": [word]}}, check_files=False)
    (desk / "r.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(Path("r.yaml"), check_files=False) == recipe


@pytest.mark.parametrize("parts", [{"no": "such"}, [{"no": "such"}], [], "a.jsonl", [3]])
def test_a_mixture_of_another_shape_is_said(parts):
    with pytest.raises(TopcoatError, match=r"data\.mixture is") as caught:
        recipe_from_dict({**SMALL, "data": {"mixture": parts}}, check_files=False)
    assert len(caught.value.problems) == 1


def test_an_error_says_something():
    with pytest.raises(ValueError, match="an error needs a problem"):
        TopcoatError.gather([])


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
