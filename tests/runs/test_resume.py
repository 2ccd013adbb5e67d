"""A run that was stopped and resumed equals one that never was: losses as hex floats, bytes of adapter and moments."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from topcoat.errors import Interrupted, Refused, TopcoatError
from topcoat.model.tiny import save_tiny
from topcoat.training.loss_scale import LossScale

DROPOUT = {"adapter": {"lora_dropout": 0.1}}
ADALORA = {"method": "adalora", "r": None, "init_r": 5, "target_r": 3, "tinit": 1, "tfinal": 2, "lora_dropout": 0.1}
VARIANTS = {
    "packing and dropout": DROPOUT,
    "padded": {**DROPOUT, "data": {"packing": False}},
    "several micro batches": {**DROPOUT, "train": {"micro_batch_tokens": 40}},
    "batch by tokens": {**DROPOUT, "train": {"batch_size": None, "batch_tokens": 90}},
    "recomputed blocks": {**DROPOUT, "train": {"recompute": "block"}},
    "QLoRA": {**DROPOUT, "model": {"quantization": {"format": "nf4"}}},
    "bf16": {**DROPOUT, "model": {"compute_dtype": "bf16"}},
    "fp16": {"adapter": {"lora_dropout": 0.1}, "model": {"compute_dtype": "fp16"}},
    "modules_to_save": {"adapter": {"lora_dropout": 0.1, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}},
    "full": {"adapter": {"method": "full", "r": None}},
    "NEFTune and label smoothing": {"train": {"neftune_noise_alpha": 5, "label_smoothing": 0.1}},
    "DoRA": {"adapter": {"method": "dora", "lora_dropout": 0.1}},
    "VeRA": {"adapter": {"method": "vera"}},
    "AdaLoRA": {"adapter": ADALORA},
    "AdaLoRA on nf4, looked at every third step": {
        "adapter": ADALORA | {"deltaT": 3, "tinit": None, "tfinal": None},
        "model": {"quantization": {"format": "nf4"}},
        "train": {"micro_batch_tokens": 40},
    },
    "IEC": {"adapter": {"method": "iec", "lora_dropout": 0.1}},
    "PiSSA with LoRA+": {"adapter": {"init_lora_weights": "pissa_niter_2", "loraplus_lr_ratio": 4}},
    "EVA with a frozen A": {"adapter": {"init_lora_weights": "eva", "freeze_lora_a": True}},
    "LoftQ": {"adapter": {"init_lora_weights": "loftq"}, "model": {"quantization": {"format": "nf4"}}},
    "prompt tuning": {
        "adapter": {
            "method": "prompt_tuning",
            "r": None,
            "prompt_tuning_init": "TEXT",
            "prompt_tuning_init_text": "Say",
        }
    },
    "P-tuning with dropout": {
        "adapter": {
            "method": "p_tuning",
            "r": None,
            "encoder_reparameterization_type": "LSTM",
            "encoder_dropout": 0.2,
            "encoder_hidden_size": 8,
        }
    },
    "a prefix on recomputed blocks": {
        "adapter": {"method": "prefix_tuning", "r": None},
        "train": {"recompute": "block"},
    },
    "P-tuning v2, padded": {"adapter": {"method": "p_tuning_v2", "r": None}, "data": {"packing": False}},
    "rows of the embedding": {"adapter": {"trainable_token_indices": [5, 7]}},
    "moments on a disk": {**DROPOUT, "train": {"optimizer": "paged_adamw"}},
    "full, moments on a disk": {"adapter": {"method": "full", "r": None}, "train": {"optimizer": "paged_adamw"}},
    "no validation": {**DROPOUT, "data": {"validation": None}, "evaluate": {"every": None, "samples": None}},
    "rare evaluation, own save cadence": {**DROPOUT, "evaluate": {"every": 7}, "train": {"save_every": 3}},
}


def without_none(recipe):
    """The sections without keys set to None, but for data.validation, where None has a meaning."""
    keep = {"validation"}
    return {
        name: {k: v for k, v in part.items() if v is not None or k in keep} if isinstance(part, dict) else part
        for name, part in recipe.items()
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_a_stopped_run_ends_as_one_that_never_was(name, tiny_recipe, train, trace, ear, stop_after):
    whole = without_none(tiny_recipe("whole", **VARIANTS[name]))
    train(whole)
    stopped = {**whole, "output": whole["output"] + "-stopped"}
    first, second = sorted(random.Random(name).sample(range(1, 8), 2))
    for resume, step in ((False, first), (True, second)):
        listener = ear(stop_after["step"](step))
        with pytest.raises(Interrupted, match=f"SIGTERM: saved step {step}"):
            train(stopped, resume=resume, listener=listener)
    listener = ear()
    train(stopped, resume=True, listener=listener)
    assert f"resuming at step {second} of 8" in listener.heard
    assert trace(stopped["output"]) == trace(whole["output"])
    assert len(trace(whole["output"])["metrics"]) >= 8


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Where the run of the property below is kept between its examples."""
    return tmp_path_factory.mktemp("property")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    when=st.sampled_from(["step", "evaluation"]),
    step=st.integers(1, 8),
    number=st.sampled_from([signal.SIGINT, signal.SIGTERM]),
)
def test_wherever_it_is_stopped(uninterrupted, tiny_recipe, train, trace, ear, stop_after, when, step, number):
    """Ten rows in steps of three: step 4 ends an epoch and is evaluated, step 8 is the last."""
    if when == "evaluation":
        step = 4 if step < 5 else 8
    whole = tiny_recipe(uninterrupted / "whole", **DROPOUT)
    if not Path(whole["output"]).exists():
        train(whole)
    stopped = tiny_recipe(uninterrupted / f"{when}-{step}-{number}", **DROPOUT)
    shutil.rmtree(stopped["output"], ignore_errors=True)
    with pytest.raises(Interrupted) as caught:
        train(stopped, listener=ear(stop_after[when](step), number))
    assert caught.value.exit_code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert str(caught.value) == (
        f"{signal.Signals(number).name}: saved step {step}\n"
        f"  where: {stopped['output']}\n"
        "  fix:   the same command with --resume continues"
    )
    assert (Path(stopped["output"]) / "checkpoints" / f"step-{step:08d}").is_dir()
    train(stopped, resume=True)
    assert trace(stopped["output"]) == trace(whole["output"])


@pytest.mark.parametrize(
    ("label", "said", "step"),
    [("asking the base", "saved step 0", 0), ("say", "stopped while evaluating; no step is lost", 8)],
)
def test_a_stop_before_or_after_the_training_loses_nothing(label, said, step, tiny_recipe, train, trace, ear):
    whole = tiny_recipe("whole", evaluate={"metrics": ["exact_match"]})
    train(whole)
    stopped = {**whole, "output": whole["output"] + "-stopped"}

    def asks(figures):  # "saved .../adapter" is said when all is trained and the adapter's questions come next
        return figures["label"] == label and figures.get("text", "saved").startswith("saved")

    with pytest.raises(Interrupted, match=f"SIGTERM: {said}") as caught:
        train(stopped, listener=ear(asks))
    assert caught.value.problems[0].fix == "the same command with --resume continues"
    listener = ear()
    train(stopped, resume=True, listener=listener)
    assert f"resuming at step {step} of 8" in listener.heard
    assert trace(stopped["output"]) == trace(whole["output"])


def test_damaged_checkpoints_are_passed_over_and_what_came_after_them_is_done_again(
    tiny_recipe, train, trace, ear, stop_after
):
    """Steps 6 and 7 are damaged, so the evaluation after step 6 is in the logs already when it comes again."""
    whole = tiny_recipe("whole", **DROPOUT, evaluate={"every": 3}, train={"keep_checkpoints": 3})
    train(whole)
    stopped = {**whole, "output": whole["output"] + "-stopped"}
    with pytest.raises(Interrupted):
        train(stopped, listener=ear(stop_after["step"](7)))
    for step in (6, 7):
        file = Path(stopped["output"]) / "checkpoints" / f"step-{step:08d}" / "adapter.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    listener = ear()
    train(stopped, resume=True, listener=listener)
    assert [text.split(":")[0] for text in listener.heard if "usable" in text] == [
        "step-00000007 is not usable",
        "step-00000006 is not usable",
    ]
    assert "resuming at step 3 of 8" in listener.heard
    assert trace(stopped["output"]) == trace(whole["output"])


def test_what_a_dead_process_left_half_written_is_swept(tiny_recipe, train, ear, stop_after):
    recipe = tiny_recipe()
    with pytest.raises(Interrupted):
        train(recipe, listener=ear(stop_after["step"](2)))
    half = Path(recipe["output"]) / "adapter.tmp-999999999-0123abcd"
    half.mkdir()
    (half / "adapter_model.safetensors").write_text("half")
    train(recipe, resume=True)
    assert not half.exists()


def test_the_loss_scale_is_taken_up_where_it_was(tiny_recipe, train, trace, ear, stop_after, monkeypatch):
    """It begins so high that the first steps overflow and halve it."""
    monkeypatch.setattr("topcoat.runs.session.LossScale.for_dtype", lambda dtype: LossScale(2.0**26, dynamic=True))
    whole = tiny_recipe("whole", model={"compute_dtype": "fp16"})
    train(whole)
    assert 0 < trace(whole["output"])["results"]["skipped_steps"] < 8
    stopped = {**whole, "output": whole["output"] + "-stopped"}
    with pytest.raises(Interrupted):
        train(stopped, listener=ear(stop_after["step"](2)))
    train(stopped, resume=True)
    assert trace(stopped["output"]) == trace(whole["output"])


def test_another_optimizer_is_refused_by_name(tiny_recipe, train, trace, ear, stop_after):
    whole = tiny_recipe("whole")
    train(whole)
    stopped = {**whole, "output": whole["output"] + "-stopped"}
    with pytest.raises(Interrupted):
        train(stopped, listener=ear(stop_after["step"](2)))
    other = {**stopped, "train": {**stopped["train"], "optimizer": "paged_adamw"}}
    with pytest.raises(TopcoatError, match=r'train\.optimizer was "adamw" when the run began and is "paged_adamw" now'):
        train(other, resume=True)
    train(stopped, resume=True)
    assert trace(stopped["output"]) == trace(whole["output"])


def test_a_moments_file_may_lie_elsewhere_when_a_run_goes_on(tiny_recipe, train, trace, ear, stop_after, tmp_path):
    whole = tiny_recipe("whole")
    whole = {**whole, "train": {**whole["train"], "optimizer": "paged_adamw"}}
    train(whole)
    stopped = {**whole, "output": whole["output"] + "-stopped"}
    with pytest.raises(Interrupted):
        train(stopped, listener=ear(stop_after["step"](2)))
    train({**stopped, "train": {**stopped["train"], "optimizer_folder": str(tmp_path)}}, resume=True)
    assert trace(stopped["output"]) == trace(whole["output"])


def test_a_checkpoint_says_which_optimizer_it_is_of(tiny_recipe, train, ear, stop_after):
    recipe = tiny_recipe()
    with pytest.raises(Interrupted):
        train(recipe, listener=ear(stop_after["step"](2)))
    manifests = sorted(Path(recipe["output"]).glob("checkpoints/*/manifest.json"))
    assert all(json.loads(m.read_text())["identity"]["optimizer"] == "adamw" for m in manifests)
    saved = Path(recipe["output"]) / "recipe.yaml"
    saved.write_text(saved.read_text().replace("optimizer: adamw", "optimizer: paged_adamw"))
    recipe["train"]["optimizer"] = "paged_adamw"
    with pytest.raises(TopcoatError, match="optimizer changed since step 2: adamw then, paged_adamw now"):
        train(recipe, resume=True)


def test_with_all_checkpoints_damaged_it_says_so(tiny_recipe, train, ear, stop_after):
    recipe = tiny_recipe()
    with pytest.raises(Interrupted):
        train(recipe, listener=ear(stop_after["step"](2)))
    for manifest in Path(recipe["output"]).glob("checkpoints/*/manifest.json"):
        manifest.write_text("{}")
    with pytest.raises(Refused, match=r"no checkpoint in .*checkpoints can be used") as caught:
        train(recipe, resume=True)
    assert caught.value.problems[0].fix == "start again in another output folder"


def test_a_run_that_died_before_its_first_checkpoint_starts_at_step_0(tiny_recipe, train, trace, ear, monkeypatch):
    whole = tiny_recipe("whole")
    train(whole)
    died = {**whole, "output": whole["output"] + "-died"}
    with monkeypatch.context() as patch:

        def die(*arguments: object, **keywords: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("topcoat.training.checkpoint._write_tensors", die)
        with pytest.raises(KeyboardInterrupt):
            train(died)
    assert (Path(died["output"]) / "checkpoints").is_dir()
    listener = ear()
    train(died, resume=True, listener=listener)
    assert "no checkpoint was saved yet; starting at step 0" in listener.heard
    assert trace(died["output"]) == trace(whole["output"])


def test_the_scores_of_the_base_are_the_base_s_own_when_they_are_measured_again(tiny_recipe, train, ear, stop_after):
    recipe = tiny_recipe(train={"learning_rate": 0.02})
    expected = train(tiny_recipe("other", train={"learning_rate": 0.02})).base
    with pytest.raises(Interrupted):
        train(recipe, listener=ear(stop_after["step"](6)))
    (Path(recipe["output"]) / "results.json").unlink()
    assert train(recipe, resume=True).base == expected


def test_a_finished_run_resumed_changes_nothing(tiny_recipe, train, trace):
    recipe = tiny_recipe()
    train(recipe)
    before = trace(recipe["output"])
    train(recipe, resume=True)
    assert trace(recipe["output"]) == before


def test_a_run_folder_may_be_moved_and_its_files_too(tiny_recipe, train, trace, ear, stop_after, tmp_path):
    whole = tiny_recipe("whole")
    train(whole)
    stopped = tiny_recipe("stopped")
    with pytest.raises(Interrupted):
        train(stopped, listener=ear(stop_after["step"](3)))
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    shutil.move(stopped["output"], elsewhere / "moved")
    moved = {**stopped, "output": str(elsewhere / "moved"), "data": {}, "model": dict(stopped["model"])}
    moved["model"]["path"] = shutil.copytree(stopped["model"]["path"], elsewhere / "model").as_posix()
    for name, file in stopped["data"].items():
        moved["data"][name] = shutil.copy(file, elsewhere / f"my-{name}.jsonl").as_posix()
    train(moved, resume=True)
    expected, found = trace(whole["output"]), trace(moved["output"])
    for results in (expected["results"], found["results"]):
        results["data"].pop("files"), results["data"].pop("longest_row", None)
    assert found == expected


@pytest.fixture
def started(tiny_recipe, train, ear, stop_after):
    """A recipe whose run was stopped after its fifth step."""
    recipe = tiny_recipe()
    with pytest.raises(Interrupted):
        train(recipe, listener=ear(stop_after["step"](5)))
    return recipe


def refusal(train, recipe) -> str:
    """What a resume with `recipe` is refused with; nothing in the folder may change."""
    folder = Path(recipe["output"])
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(TopcoatError) as caught:
        train(recipe, resume=True)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    return str(caught.value)


def test_every_changed_setting_is_named(started, train):
    changed = {**started, "train": {**started["train"], "learning_rate": 1e-4, "max_steps": 9}, "seed": 7}
    said = refusal(train, changed)
    assert "seed was 42 when the run began and is 7 now" in said
    assert "train.learning_rate was 0.003 when the run began and is 0.0001 now" in said
    assert "train.max_steps was 8 when the run began and is 9 now" in said
    assert "fix:   write seed=42 to continue, or name another output for a new run" in said
    assert "recipe.yaml" in said


def test_changed_rows_are_refused(started, train, tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text(Path(started["data"]["train"]).read_text() + json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    said = refusal(train, {**started, "data": {**started["data"], "train": str(file)}})
    assert "data changed since step 5" in said
    assert "give the data of that time again, or start a new run in another output folder" in said


def test_another_base_is_refused(started, train, tmp_path):
    other = save_tiny(tmp_path / "other", "llama", seed=1)
    said = refusal(train, {**started, "model": {**started["model"], "path": str(other)}})
    assert "base model changed since step 5" in said
    assert "tokenizer changed" not in said


def test_another_tokenizer_is_refused(started, train, tmp_path):
    other = Path(shutil.copytree(started["model"]["path"], tmp_path / "other"))
    rules = json.loads((other / "tokenizer.json").read_text())
    rules["added_tokens"].append({**rules["added_tokens"][0], "id": 505, "content": "<|new|>"})
    (other / "tokenizer.json").write_text(json.dumps(rules))
    said = refusal(train, {**started, "model": {**started["model"], "path": str(other)}})
    assert "tokenizer changed since step 5" in said
    assert "base model changed" not in said


def test_another_chat_template_is_refused(started, train, tmp_path):
    template = tmp_path / "other.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    )
    said = refusal(train, {**started, "model": {**started["model"], "chat_template": str(template)}})
    assert "chat template changed since step 5" in said


def test_settings_that_change_no_number_may_change(started, train):
    changed = {**started, "train": {**started["train"], "keep_checkpoints": 5, "save_every": 2}}
    changed["data"] = {**started["data"], "checks": {"validation_leaks": "stop"}}  # were made before the first step
    train(changed, resume=True)
    assert (Path(started["output"]) / "checkpoints" / "step-00000006").is_dir()


def test_what_is_no_run_cannot_be_resumed(tiny_recipe, train, tmp_path):
    with pytest.raises(TopcoatError, match=r"nothing is no run folder: it has no recipe\.yaml"):
        train(tiny_recipe("nothing"), resume=True)
    assert not (tmp_path / "nothing").exists()
