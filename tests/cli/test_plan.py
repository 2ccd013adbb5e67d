"""topcoat plan: the bill, the verdict as an exit code, bad input, and how fast it answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import pytest
from ruamel.yaml import YAML

from topcoat.exporting.checkpoint import quantize_checkpoint
from topcoat.model.safetensors_source import DirectorySource
from topcoat.planning import calibration
from topcoat.quant.settings import IntConfig


@pytest.fixture(autouse=True)
def known_cpu(monkeypatch):
    """No test waits for a measurement; `tests/planning/test_calibration.py` has one."""
    monkeypatch.setattr(calibration, "measure", lambda bf16: calibration.Reached(1e12, 1e11, 1e10, 1e-6))


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    def write(**sections):
        file = tmp_path / "recipe.yaml"
        with open(file, "w", encoding="utf-8") as stream:
            YAML().dump(tiny_recipe(**sections), stream)
        return str(file)

    return write


def test_a_model_by_name_on_a_device_by_name(topcoat):
    done = topcoat("plan", "llama-3.1-8b", "--device", "rtx4090", "model.quantization.format=nf4")
    assert done.code == 0
    for said in ("8.03B parameters", "41,943,040 parameters", "GeForce RTX 4090", "fits:", "quantization constants"):
        assert said in done.out
    for phase in ("load", "evaluate", "save", "merge"):
        assert f"phase: {phase}" in done.out
    assert "fastest that fit" in done.out
    assert "not measured" in done.out


def test_what_does_not_fit_is_exit_code_1_with_the_smallest_change(topcoat):
    done = topcoat("plan", "llama-3.1-8b", "--device", "rtx4090", "--json")
    assert done.code == 0 or done.json["smallest_change"] is not None
    tight = topcoat("plan", "llama-3.1-8b", "--device", "rtx3060", "train.recompute=none")
    assert tight.code == 1
    assert "does not fit: " in tight.out
    assert "smallest change that fits: " in tight.out


def test_where_nothing_fits_a_device_is_named(topcoat):
    done = topcoat("plan", "llama-2-70b-hf", "--device", "rtx4090", "model.quantization.format=nf4")
    assert done.code == 1
    assert "nothing fits: the smallest way takes" in done.out
    assert "it would fit on " in done.out


def test_json_is_one_object_whose_lines_add_up(topcoat):
    done = topcoat("plan", "qwen2.5-0.5b", "--device", "l4", "--budget", "8GiB", "--json", "--price", "0.8EUR/h")
    plan = done.json
    assert plan["ok"] is True
    assert plan["phases"]["train"] == sum(line["bytes"] for line in plan["lines"])
    assert plan["peak_bytes"] == max(value for name, value in plan["phases"].items() if name != "merge")
    assert plan["budget_bytes"] == 8 * 2**30
    assert plan["room_bytes"] == plan["budget_bytes"] - plan["peak_bytes"]
    assert plan["step_seconds"][0] <= plan["step_seconds"][1]
    assert plan["proved"] is True
    json.dumps(plan, allow_nan=False)


def test_a_recipe_with_data_is_planned_to_its_last_step_and_its_price(topcoat, recipe):
    done = topcoat("plan", recipe(train={"max_steps": None, "epochs": 2}), "--json", "--price", "36EUR/h")
    plan = done.json
    assert plan["steps"] == 7  # 10 rows, 3 a step, twice
    assert plan["cost"] == pytest.approx([s / 100 for s in plan["run_seconds"]])
    assert plan["device"]["source"] == "measured on this machine"
    shown = topcoat("plan", recipe(train={"max_steps": None, "epochs": 2}), "--price", "36EUR/h")
    assert "for 7 steps of training" in " ".join(shown.out.split())
    assert "cost" in shown.out
    assert "EUR" in shown.out


def test_the_plan_is_the_bill_that_the_run_makes(topcoat, recipe, tmp_path):
    file = recipe(train={"max_steps": 1}, data={"max_length": 64})
    plan = topcoat("plan", file, "--json").json
    assert topcoat("train", file, "--json").code == 0
    made = json.loads((tmp_path / "run" / "plan.json").read_text())
    ours = {line["name"]: line["bytes"] for line in plan["lines"]}
    theirs = {line["name"]: line["bytes"] for line in made["lines"]}
    same = set(ours) - {"runtime", "saved activations", "backward working set", "loss", "difference measured"}
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}


def test_an_unknown_architecture_says_what_was_assumed(topcoat, tiny_llama, tmp_path):
    facts = json.loads((tiny_llama / "config.json").read_text()) | {"model_type": "marvel"}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    done = topcoat("plan", str(tmp_path), "--device", "l4")
    assert "unproved: marvel is not among the known architectures: taken for a Llama" in done.out
    assert topcoat("plan", str(tmp_path), "--device", "l4", "--json").json["proved"] is False


def test_a_mixture_of_experts_is_planned_with_all_its_experts(topcoat):
    done = topcoat("plan", "mixtral-8x7b-v0.1", "--device", "h100", "model.quantization.format=nf4")
    assert "46.7B parameters" in done.out
    assert "all 8 experts" in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["llama-3.1-7b"], "did you mean llama-3.1-"),
        (["llama-3.1-8b", "--device", "rtx5000"], "did you mean rtx5090 or rtx5080"),
        (["llama-3.1-8b", "--budget", "6"], "'6' has no unit"),
        (["llama-3.1-8b", "--budget", ""], "'' is no amount of memory"),
        (["llama-3.1-8b", "--budget", "0.0000001KiB"], "a budget of nothing fits nothing"),
        (["llama-3.1-8b", "--price", ""], "'' is no price"),
        (["llama-3.1-8b", "--price", "3"], "'3' is no price"),
        (["llama-3.1-8b", "--device", "a100"], "did you mean a100-40 or a100-80?"),
        (["llama-3.1-8b", "--device", "cuda:0"], "auto is this machine's own"),
        (["llama-3.1-8b", "--device", "cpu", "--price", "0.3EUR/kWh"], "the power that this CPU draws is not known"),
        (["absent.yaml"], "there is no recipe absent.yaml"),
        (["llama-3.1-8b", "train.epoch=1"], "train.epoch"),
        (["smollm2-135m", "data.max_length=8193"], "but the model's context is 8,192 tokens"),
        (["llama-3.1-8b", "adapter.target_modules=[q_porj]"], "matched no linear layer: ['q_porj']"),
        ([], "Missing argument"),
    ],
)
def test_bad_input_is_exit_code_2_in_under_two_seconds(topcoat, words, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    began = time.process_time()
    done = topcoat("plan", *words)
    assert time.process_time() - began < 2
    assert done.code == 2
    assert said in done.err


def test_a_recipe_for_a_model_that_is_not_there(topcoat, recipe):
    done = topcoat("plan", recipe(model={"path": "SmolLM9-135M"}))
    assert done.code == 2
    assert "did you mean" in done.err
    assert "smollm2-135m" in done.err


def test_impossible_sizes_are_refused(topcoat, tiny_llama, tmp_path):
    facts = json.loads((tiny_llama / "config.json").read_text()) | {"num_hidden_layers": 10**9, "vocab_size": -1}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    done = topcoat("plan", str(tmp_path), "--device", "l4")
    assert done.code == 2
    assert "num_hidden_layers is 1000000000" in done.err
    assert "vocab_size is -1" in done.err


def answers_without_torch(model):
    code = "import sys; from topcoat.cli.main import run; "
    code += f"assert run(['plan', {str(model)!r}, '--device', 'h200', '--json']) in (0, 1); "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_it_answers_without_torch():
    answers_without_torch("llama-3.1-405b")


def test_it_reads_a_quantized_checkpoint_without_torch(tiny_llama, tmp_path):
    quantize_checkpoint(DirectorySource(tiny_llama), tmp_path / "q", IntConfig())
    answers_without_torch(tmp_path / "q")


def test_it_reads_the_dtype_of_plain_weights_without_torch(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "m")
    facts = json.loads((tmp_path / "m" / "config.json").read_text())
    kept = {key: value for key, value in facts.items() if not key.endswith("dtype")}
    (tmp_path / "m" / "config.json").write_text(json.dumps(kept))
    answers_without_torch(tmp_path / "m")


def test_without_rows_a_price_is_that_of_a_million_tokens_and_a_gpu_has_its_energy(topcoat):
    done = topcoat("plan", "qwen2.5-0.5b", "--device", "l4", "--price", "30EUR/kWh")
    assert "EUR for a million tokens, " in done.out
    assert " kWh at 72 W" in done.out


def test_measuring_needs_rows(topcoat):
    done = topcoat("plan", "qwen2.5-0.5b", "--device", "cpu", "--measure")
    assert done.code == 2
    assert "there are no rows to measure with" in done.err
    assert "give a recipe whose data.train is a .jsonl file that is here" in done.err


def test_measuring_needs_weights(topcoat, recipe, tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    done = topcoat("plan", recipe(), f"model.path={tmp_path / 'm'}", "--device", "cpu", "--measure")
    assert done.code == 2
    assert "there are no weights here" in done.err
    done = topcoat("plan", recipe(), "model.path=qwen2.5-0.5b", "--device", "cpu", "--measure")
    assert done.code == 2
    assert "qwen2.5-0.5b is known by name alone: its weights are not here" in done.err


def test_a_mixture_says_that_it_cannot_be_trained(topcoat):
    done = topcoat("plan", "mixtral-8x7b-v0.1", "--device", "h100", "--json")
    assert "warning: topcoat train refuses mixtures of experts; this plan is for comparison only" in done.json["notes"]


def test_a_model_alone_reads_no_rows_that_happen_to_lie_there(topcoat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = topcoat("plan", "smollm2-135m", "--device", "l4", "--json").json
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 60)
    assert topcoat("plan", "smollm2-135m", "--device", "l4", "--json").json == before
    assert before["run_seconds"] is None


def test_rows_that_are_not_there_are_named(topcoat, recipe):
    done = topcoat("plan", recipe(data={"train": "/absent/rows.jsonl"}), "--device", "l4")
    assert "since /absent/rows.jsonl is not here" in done.out


@pytest.mark.parametrize("typed", ["CPU", " auto "])
def test_this_machine_is_meant_in_any_case(topcoat, typed):
    assert topcoat("plan", "smollm2-135m", "--device", typed, "--json").json["device"]["name"] == "cpu"


def test_a_gpu_that_is_here_has_what_is_free_on_it_and_one_that_is_not_known_is_refused(topcoat, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 9000\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("topcoat.runs.planning.gpu_here", lambda: "NVIDIA L4")
    plan = topcoat("plan", "smollm2-135m", "--json").json
    assert (plan["device"]["name"], plan["budget_bytes"]) == ("l4", 9000 * 2**20)
    tool.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert topcoat("plan", "smollm2-135m", "--json").json["budget_bytes"] == 22 * 2**30
    monkeypatch.setattr("topcoat.runs.planning.gpu_here", lambda: "NVIDIA GeForce RTX 4090 Laptop GPU")
    for verb in (["plan", "smollm2-135m"], ["advise", "--task", "style", "--model", "smollm2-135m"]):
        done = topcoat(*verb)
        assert done.code == 2
        assert "this machine's GPU, NVIDIA GeForce RTX 4090 Laptop GPU, is not in the table of devices" in done.err


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"3",
        b'{"model_type": "llama", ',
        b"\x00\xff" * 99,
        "{}".encode("utf-16"),
        b"[" * 10**5,
        b'{"hidden_size": 64, "hidden_size": 32}',
        b'{"num_hidden_layers": ' + b"9" * 5000 + b"}",
        b"{}",
    ],
)
def test_a_config_that_is_none_is_refused(topcoat, tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    done = topcoat("plan", str(tmp_path), "--device", "l4")
    assert done.code == 2, done.out
    assert "unexpected" not in done.err
    assert "fix: " in done.err


def test_the_picture_names_every_part_however_thin(topcoat):
    done = topcoat("plan", "smollm2-135m", "--device", "b200")
    [legend] = [line for line in done.out.splitlines() if line.startswith("█ frozen weights")]
    assert all(f"█ {part} " in legend for part in ("frozen weights", "what trains", "activations", "process"))
    assert "░ free " in legend


def test_what_a_run_on_this_device_would_refuse_is_refused_by_its_plan_too(topcoat, recipe):
    done = topcoat("plan", recipe(), "train.optimizer=adamw_8bit", "train.recompute=offload", "--device", "cpu")
    assert done.code == 2
    assert "train.optimizer adamw_8bit runs on cuda, and this run is on cpu" in done.err
    assert "train.recompute is offload, which keeps activations in host memory" in done.err
    done = topcoat("plan", recipe(), "train.optimizer=paged_adamw", "--device", "rtx4090")
    assert done.code == 2
    assert "train.optimizer paged_adamw runs on cpu, and this run is on cuda" in done.err
