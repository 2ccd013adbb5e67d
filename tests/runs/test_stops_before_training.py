"""A run whose tokens would be the wrong ones ends before its first step, says why, and how to go on on purpose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from topcoat.data.checks.corpus import Most
from topcoat.errors import Refused, TopcoatError
from topcoat.recipe.load import dump_recipe, load_recipe, recipe_from_dict
from topcoat.runs import checking
from topcoat.runs.listener import Silent
from topcoat.runs.run import run

TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
DROPS_SYSTEM = "{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}"
ANSWERS_ONLY = "{% for m in messages if m.role == 'assistant' %}{{ m.content + '<|im_end|>' }}{% endfor %}"
TWO_BOS = "{{ bos_token + bos_token }}{% for m in messages %}" + TURN + "{% endfor %}"
SHOUTS = (
    "{% for m in messages %}{% if m.role == 'user' %}" + TURN + "{% else %}{{ '<|im_start|>assistant\n' + "
    "m.content | upper + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SAID = {"role": "system", "content": "Be brief."}
CASES = {
    "nothing is trained": (
        None,
        {"max_length": 8, "overlong": "truncate"},
        "tokens are trained: no example has",
        "data.loss_on: all",
    ),
    "no stop token is trained": (
        None,
        {"max_length": 24, "overlong": "truncate"},
        "No example has a trained end-of-turn token (<|im_end|>). The model would never learn to stop.",
        "data.allow: [no_stop_token]",
    ),
    "everything is trained": (
        ANSWERS_ONLY,
        {"allow": ["dropped_turns"]},
        "every token is trained",
        "data.loss_on: all",
    ),
    "a turn is left out": (
        DROPS_SYSTEM,
        {},
        'the chat template leaves out message 1 (system): "Be brief."',
        "data.allow: [dropped_turns]",
    ),
    "an answer is rewritten": (SHOUTS, {}, "would not be its text", "data.allow: [rewritten_answers]"),
    "the beginning of the text is doubled": (TWO_BOS, {}, "starts with two <|im_start|>", "take one of them out"),
}


@pytest.fixture
def recipe_of(tiny_recipe, tmp_path):
    def make(template, data, system):
        rows = [
            {
                "messages": [
                    *([SAID] if system else []),
                    {"role": "user", "content": f"What is it, {i}?"},
                    {"role": "assistant", "content": f"It is a printer, and that is all there is to say, {i}."},
                ]
            }
            for i in range(6)
        ]
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        model = {}
        if template is not None:
            (tmp_path / "t.jinja").write_text(template)
            model["chat_template"] = str(tmp_path / "t.jinja")
        data = {"train": str(tmp_path / "t.jsonl"), "validation": None, **data}
        recipe = tiny_recipe(model=model, data=data, train={"max_steps": 1})
        del recipe["evaluate"]  # there are no validation rows
        return recipe_from_dict(recipe)

    return make


@pytest.mark.parametrize("case", CASES)
def test_the_run_ends_before_step_one_and_says_why(recipe_of, tmp_path, case):
    template, data, what, fix = CASES[case]
    with pytest.raises(TopcoatError) as caught:
        run(recipe_of(template, data, system=case == "a turn is left out"))
    assert what in str(caught.value)
    assert fix in str(caught.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("template", "data"),
    [
        (None, {"max_length": 24, "overlong": "truncate", "allow": ["no_stop_token"]}),
        (ANSWERS_ONLY, {"allow": ["dropped_turns", "all_trained"]}),
        (ANSWERS_ONLY, {"allow": ["dropped_turns"], "loss_on": "all"}),
        (DROPS_SYSTEM, {"allow": ["dropped_turns"]}),
        (SHOUTS, {"allow": ["rewritten_answers"]}),
    ],
)
def test_it_goes_on_on_purpose(recipe_of, template, data):
    assert run(recipe_of(template, data, system=template == DROPS_SYSTEM)).steps == 1


class Heard(Silent):
    """What a run says."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture
def memory_test(tiny_recipe, tiny_rows, tmp_path):
    """memory_test(checks): a recipe whose validation rows are all trained on."""

    def make(**checks):
        rows = Path(tiny_rows["train"]).read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / "v.jsonl").write_text("".join(rows[:4]), encoding="utf-8")
        data = {"validation": str(tmp_path / "v.jsonl"), "checks": checks}
        return recipe_from_dict(tiny_recipe(data=data, train={"max_steps": 1}))

    return make


def test_a_test_of_memory_goes_on_with_a_warning_from_its_complete_recipe_too(memory_test, tmp_path):
    (tmp_path / "r.yaml").write_text(dump_recipe(memory_test()), encoding="utf-8")
    heard = Heard()
    assert run(load_recipe(tmp_path / "r.yaml"), listener=heard).steps == 1
    said = "warning: validation_leaks: 4 of 4 validation rows have a prompt that is trained on"
    assert any(line.startswith(said) for line in heard.lines)


def test_a_test_of_memory_stops_where_the_recipe_says_so(memory_test):
    with pytest.raises(Refused, match="4 of 4 validation rows have a prompt that is trained on") as caught:
        run(memory_test(validation_leaks="stop"))
    assert "set data.checks.validation_leaks: warn" in str(caught.value)


@pytest.fixture
def long_files(tiny_recipe, tiny_rows, tmp_path, monkeypatch):
    """long_files(most): a recipe of ten training and four validation rows, of which so much is looked at."""

    def make(most):
        monkeypatch.setattr(checking, "BEFORE_TRAINING", most)
        return recipe_from_dict(tiny_recipe(train={"max_steps": 1}))

    return make


@pytest.mark.parametrize(
    ("most", "said"),
    [
        (Most(10, 10**6), ""),
        (Most(6, 10**6), "the first 6 of 10 training rows"),
        (Most(3, 10**6), "the first 3 of 10 training rows and the first 3 validation rows"),
        (Most(10, 1), "the first 1 of 10 training rows and the first 1 validation rows"),
    ],
)
def test_what_was_looked_at_is_said_where_it_is_not_all(long_files, most, said):
    heard = Heard()
    run(long_files(most), listener=heard)
    start = "the checks of the data looked at"
    expected = [f"{start} {said}; `topcoat data check` looks at all of them"] if said else []
    assert [line for line in heard.lines if line.startswith(start)] == expected
