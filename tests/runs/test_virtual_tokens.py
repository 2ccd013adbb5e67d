"""Whole runs with virtual tokens: they learn, are counted, saved and talked to; what they cannot do is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from topcoat.adapters.prompt_methods import PROMPTS
from topcoat.errors import TopcoatError
from topcoat.recipe.load import recipe_from_dict
from topcoat.runs.conversation import Sampling, open_chat
from topcoat.runs.exporting import export_run
from topcoat.runs.merging import merge_run
from topcoat.runs.opening import RunSteps
from topcoat.runs.planning import plan
from topcoat.runs.room import room_for_text


def rows_file(path: Path) -> str:
    """Four rows to learn by heart."""
    answers = {"the first": "alpha one", "the second": "beta: zwei", "the third": "γάμμα 🙂", "the fourth": '{"d": 4}'}
    path.write_text("".join(json.dumps({"prompt": f"Say {q}.", "completion": a}) + "\n" for q, a in answers.items()))
    return str(path)


LEARNS = {
    "prompt_tuning": (0.05, 0.6, []),
    "p_tuning_v2": (0.05, 0.25, []),
    "p_tuning": (0.01, 0.8, [pytest.mark.slow]),
    "prefix_tuning": (0.02, 0.5, [pytest.mark.slow]),
}


@pytest.mark.parametrize(
    ("method", "rate", "share"), [pytest.param(m, r, s, marks=k, id=m) for m, (r, s, k) in LEARNS.items()]
)
def test_they_learn(method, rate, share, tiny_recipe, train, tmp_path):
    steps = {"max_steps": 40, "batch_size": 4, "learning_rate": rate}
    recipe = tiny_recipe(train=steps, evaluate={"metrics": ["perplexity"], "every": 40, "samples": 0})
    data = {part: rows_file(tmp_path / f"{part}.jsonl") for part in ("train", "validation")}
    done = train(recipe | {"adapter": {"method": method}, "data": data})
    assert done.tuned.perplexity < share * done.base.perplexity
    assert not done.mergeable


def test_every_method_learns_here():
    assert set(LEARNS) == set(PROMPTS)


@pytest.fixture
def finished(tiny_recipe, train, ear):
    """A run of p_tuning_v2, and what was said while it ran."""
    recipe = tiny_recipe() | {"adapter": {"method": "p_tuning_v2", "num_virtual_tokens": 8}}
    listener = ear()
    return train(recipe, listener=listener), listener


def test_a_finished_run_says_what_it_was_and_can_be_talked_to(finished):
    done, _ = finished
    card = (done.adapter / "README.md").read_text()
    assert "tags: [" in card
    assert "p_tuning_v2" in card
    assert "PeftModel.from_pretrained" in card
    bill = {line["name"]: line for line in json.loads((done.folder / "plan.json").read_text())["lines"]}
    assert bill["trained parameters"]["bytes"] == 4 * 8 * 2 * 2 * 32
    with pytest.raises(TopcoatError) as caught:
        merge_run(done.folder)
    assert "p_tuning_v2 adds virtual tokens before the text and changes no weight" in str(caught.value)
    assert "topcoat chat and PEFT read it" in str(caught.value)
    for to, made in (("gguf", "GGUF model"), ("gguf-lora", "GGUF adapter")):
        with pytest.raises(TopcoatError, match=f"changes no weight, so there is no {made}"):
            export_run(done.folder, to)
    folder, export = export_run(done.folder, "peft")
    assert export.rank is None
    name = "adapter_model.safetensors"
    assert (folder / name).read_bytes() == (done.adapter / name).read_bytes()
    chat = open_chat(str(done.folder), lambda text: None)
    chat.start(None)
    with_them = chat.answer("What is coat?", lambda piece: None, Sampling(max_new_tokens=12))
    chat.start(None)
    chat.switch(False)
    assert chat.answer("What is coat?", lambda piece: None, Sampling(max_new_tokens=12)) != with_them


TOO_LONG = [
    (
        {"num_virtual_tokens": 511},
        {},
        "adapter.num_virtual_tokens is 511, and the model's context is 512 tokens: no text fits",
    ),
    (
        {"num_virtual_tokens": 12},
        {"max_length": 501},
        "data.max_length is 501, and 12 virtual tokens leave 500 of the model's 512 positions for text",
    ),
]


@pytest.mark.parametrize(("adapter", "data", "what"), TOO_LONG)
def test_no_room_for_text_is_refused_by_run_and_plan_alike(adapter, data, what, tiny_recipe, train, tmp_path):
    recipe = tiny_recipe(data=data) | {"adapter": {"method": "prompt_tuning", **adapter}}
    with pytest.raises(TopcoatError) as caught:
        train(recipe)
    assert what in str(caught.value)
    assert "where: " in str(caught.value)
    assert not Path(recipe["output"]).exists()
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.raises(TopcoatError) as caught:
        plan(str(tmp_path / "recipe.yaml"), device="a100-40gb")
    assert what in str(caught.value)


def test_the_room_is_the_context_without_the_tokens(tiny_recipe):
    def of(**adapter):
        return room_for_text(512, recipe_from_dict(tiny_recipe() | {"adapter": adapter}))

    assert of(method="lora") == 512
    assert of(method="prefix_tuning", num_virtual_tokens=12) == 500


WRONG = [
    (
        {"method": "prompt_tuning", "num_virtual_tokens": 0},
        "adapter.num_virtual_tokens is 0; expected a whole number of",
    ),
    (
        {"method": "prompt_tuning", "prompt_tuning_init": "TEXT"},
        "adapter: prompt_tuning_init: TEXT and prompt_tuning_init_text go together\n  where: python\n  fix:   write",
    ),
    (
        {"method": "p_tuning", "encoder_dropout": 0.1},
        "adapter: encoder_num_layers and encoder_dropout are the LSTM's\n  where: python\n  fix:   choose the LSTM",
    ),
    (
        {
            "method": "p_tuning",
            "encoder_reparameterization_type": "LSTM",
            "encoder_dropout": 0.1,
            "encoder_num_layers": 1,
        },
        "adapter: encoder_dropout acts between layers, and encoder_num_layers is 1\n  where: python\n  fix:   write",
    ),
    (
        {"method": "prefix_tuning", "init_weights": "zero"},
        "adapter: nothing reaches the MLP through init_weights: zero",
    ),
    ({"method": "p_tuning_v2", "prefix_projection": True}, "prefix_projection is a setting of method prefix_tuning"),
]


@pytest.mark.parametrize(("adapter", "what"), WRONG)
def test_settings_that_do_not_fit_are_refused_when_they_are_read(adapter, what, tiny_recipe):
    with pytest.raises(TopcoatError) as caught:
        recipe_from_dict(tiny_recipe() | {"adapter": adapter})
    assert what in str(caught.value)


def test_micro_batches_leave_room_for_the_tokens(tiny_recipe, train, monkeypatch):
    """Short rows with many tokens before each: what is computed at once stays within the budget."""
    seen = []
    widest = RunSteps.micro_batches

    def watch(self, step):
        batches = widest(self, step)
        seen.extend((batch.n_tokens, len(batch.rows)) for batch in batches)
        return batches

    monkeypatch.setattr(RunSteps, "micro_batches", watch)
    recipe = tiny_recipe(train={"micro_batch_tokens": 150, "max_steps": 2, "batch_size": 10})
    train(recipe | {"adapter": {"method": "prompt_tuning", "num_virtual_tokens": 30}})
    assert seen
    assert all(tokens + 30 * rows <= 150 for tokens, rows in seen)
