"""topcoat advise: by flags, by questions, from a recipe; what it writes loads and is what the plan says fits."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from topcoat.errors import TopcoatError
from topcoat.recipe.load import load_recipe
from topcoat.runs.advising import Told, advise

TUNE = ["--task", "task", "--prompted", "short", "--quality", "checked"]


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """The current folder, with 400 rows in it."""
    rows = [{"prompt": f"sort {n}", "completion": f"box {n % 7}"} for n in range(400)]
    (tmp_path / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_flags_lead_to_a_recipe_that_loads(desk, topcoat):
    words = [*TUNE, "--data", "tickets.jsonl", "--model", "llama-3.1-8b", "--device", "rtx3060", "-o", "r.yaml"]
    done = topcoat("advise", *words)
    assert done.code == 0, done.err
    for said in ("fine-tune", "QLoRA: LoRA on 4-bit weights", "✓ style-task-domain: task task", "· few-rows: rows 400"):
        assert said in done.out
    assert Path("r.yaml").read_text() in done.out
    recipe = load_recipe(Path("r.yaml"), check_files=False)
    assert recipe.model.path == "meta-llama/Llama-3.1-8B"
    assert recipe.model.quantization.format == "nf4"
    assert recipe.train.early_stopping_patience == 2
    assert topcoat("plan", "r.yaml", "--device", "rtx3060").code == 0


def test_a_device_with_room_keeps_the_weights_as_they_are(desk, topcoat):
    words = [*TUNE, "--data", "tickets.jsonl", "--model", "llama-3.1-8b", "--device", "h100", "--json"]
    found = topcoat("advise", *words).json
    assert (found["approach"], found["method"]) == ("tune", "lora")
    assert found["facts"]["qlora_fits"] == found["facts"]["lora_fits"] == "yes"
    assert "quantization: null" in found["recipe"]
    assert found["wrote"] is None
    assert all(step["source"] and step["reason"] for step in found["path"])


def test_where_no_way_fits_it_says_so(topcoat):
    done = topcoat("advise", *TUNE, "--rows", "5000", "--model", "llama-2-70b-hf", "--device", "rtx3060")
    assert done.code == 0
    assert "a smaller model, or a larger device" in done.out
    assert "topcoat plan meta-llama/Llama-2-70b-hf --device rtx3060" in done.out


def test_more_data_than_an_adapter_holds_is_trained_in_full(desk, topcoat, tiny_llama):
    row = json.dumps({"text": "a long text of many words " * 2000})
    (desk / "books.jsonl").write_text(f"{row}\n" * 100)  # 1.3 million tokens; rank 256 has half a million numbers
    where = ["--data", "books.jsonl", "--model", str(tiny_llama), "--device", "rtx4090"]
    done = topcoat("advise", "--task", "domain", *where, "-o", "r.yaml")
    assert "full fine-tuning" in done.out
    recipe = load_recipe(Path("r.yaml"), check_files=False)
    assert recipe.adapter.method == "full"
    assert recipe.model.quantization is None


def test_what_the_facts_leave_open_is_to_be_measured(topcoat):
    done = topcoat("advise", "--task", "facts,style")
    assert "measure first: the facts do not decide" in done.out
    assert "topcoat advise --task facts,style --changes monthly" in done.out


@pytest.mark.parametrize(
    "words",
    [
        ["--task", "facts,style", "--rows", "400"],
        ["--task", "style", "--rows", "10", "--model", "MODEL DIR"],
        ["--task", "style", "--prompted", "no", "--rows", "500", "--model", "MODEL DIR"],
        ["--task", "style", "--data", "my rows.jsonl", "--model", "smollm2-135m", "--device", "l4", "--budget", "1GB"],
        [*TUNE, "--rows", "5000", "--model", "llama-2-70b-hf", "--device", "rtx3060", "--budget", "6GiB"],
        [*TUNE, "--rows", "5000"],
    ],
)
def test_a_command_to_measure_with_can_be_pasted(desk, topcoat, tiny_llama, words):
    Path("tickets.jsonl").rename("my rows.jsonl")
    Path("MODEL DIR").symlink_to(tiny_llama)
    measures = topcoat("advise", *words, "--json").json["measure"]
    assert measures
    for one in measures:
        if one["fill_in"]:  # only for what was not told
            assert {"FILE": "--data", "MODEL": "--model"}[one["fill_in"][0]] not in words
            continue
        said = subprocess.run(["bash", "-c", f"printf '%s\\n' {one['command']}"], capture_output=True, text=True)
        typed = said.stdout.splitlines()
        assert said.stderr == ""  # nothing in it is the shell's
        assert typed[0] == "topcoat"
        if typed[1] == "chat":
            assert Path(typed[2]).exists() or typed[2] == "HuggingFaceTB/SmolLM2-135M"
        else:
            assert topcoat(*typed[1:]).code in (0, 1)


def test_what_was_not_told_is_to_be_filled_in(topcoat):
    done = topcoat("advise", "--task", "task")
    assert "topcoat data check FILE" in done.out
    assert "put your own for FILE" in done.out
    assert topcoat("advise", "--task", "task", "--json").json["measure"][0]["fill_in"] == ["FILE"]


def test_a_recipe_brings_model_and_data(desk, topcoat):
    Path("mine.yaml").write_text("model: smollm2-135m\ndata: tickets.jsonl\noutput: runs/x\n")
    found = topcoat("advise", "mine.yaml", "--device", "l4", "--json").json
    assert (found["approach"], found["method"]) == ("tune", "lora")
    assert found["facts"]["rows"] == 400
    assert "HuggingFaceTB/SmolLM2-135M" in found["recipe"]


def test_it_asks_for_what_no_flag_says_and_asks_again(desk, topcoat, monkeypatch):
    asked = []
    answers = iter(["styl", "style", "short", "checked", "", "merged", "smollm2-135m", ""])

    def read(self, prompt: str) -> str:
        asked.append(prompt.splitlines()[0])
        return next(answers)

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("rich.console.Console.input", read)
    done = topcoat("advise", "--data", "tickets.jsonl")
    assert done.code == 0, done.err
    assert asked[:2] == ["What should the model do better?"] * 2
    assert "How many examples are there, or could be made?" not in asked
    assert "did you mean style?" in done.out
    assert "LoRA on the weights as they are" in done.out
    assert "topcoat merge RUN" in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing says what the task is, and there is no terminal to ask on"),
        (["--task", "styl"], "did you mean style?"),
        (["--task", ""], "nothing says what the task is, and there is no terminal to ask on"),
        ([*TUNE, "--device", ""], "--device is empty"),
        ([*TUNE, "--model", ""], "--model is empty"),
        ([*TUNE, "--budget", ""], "'' is no amount of memory"),
        (["--task", "xyz"], "it takes style, task, domain, facts, latency, cost, privacy"),
        (["--task", "task", "--changes", "daily,never"], "is more than one answer"),
        ([*TUNE, "--rows", "100", "--model", "llama-3.1-7b"], "did you mean llama-3.1-"),
        ([*TUNE, "--device", "rtx5000"], "did you mean rtx5090 or rtx5080"),
        ([*TUNE, "--budget", "6"], "'6' has no unit"),
        ([*TUNE, "--data", "absent.jsonl"], "absent.jsonl"),
        (["absent.yaml"], "there is no recipe absent.yaml"),
        (["--task", "task", "-o", "here.yaml"], "here.yaml is there already"),
    ],
)
def test_bad_input_is_exit_code_2_in_under_two_seconds(topcoat, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here.yaml").write_text("mine")
    began = time.process_time()
    done = topcoat("advise", *words)
    assert time.process_time() - began < 2
    assert done.code == 2, done.out
    assert said in done.err
    assert Path("here.yaml").read_text() == "mine"


def test_without_a_terminal_the_error_lists_every_flag(topcoat):
    said = topcoat("advise").err
    for name in ("task", "prompted", "rows", "quality", "changes", "serve", "model", "data", "device"):
        assert f"--{name}" in said


def test_it_answers_without_torch_in_under_a_second(desk):
    code = "import sys, time; from topcoat.cli.main import run; "
    code += f"assert run(['advise', *{TUNE}, '--data', 'tickets.jsonl', '--model', 'llama-3.1-8b', '--json']) == 0; "
    code += (
        "assert not {'torch', 'transformers'} & set(sys.modules); assert time.process_time() < 1, time.process_time()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("task", ["style, cost", ["style", "cost"], {"style", "cost"}, frozenset({"style", "cost"})])
def test_from_python_a_task_is_named_in_any_way(task):
    made = advise(Told(task=task, rows=500))
    assert made.facts["task"] == frozenset({"style", "cost"})
    assert made.decision.answers["approach"] == "tune"


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"task": {"styl"}}, "did you mean style?"),
        ({"quality": "great"}, "'great' is no answer here"),
        ({"rows": "500"}, "'500' is no number of rows"),
        ({"rows": -1}, "-1 is no number of rows"),
        ({"budget": 6}, "6 has no unit"),
    ],
)
def test_from_python_what_is_no_answer_is_refused_too(told, said):
    with pytest.raises(TopcoatError) as caught:
        advise(Told(**{"task": "style", "rows": 500} | told))
    assert said in str(caught.value)
