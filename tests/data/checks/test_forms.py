"""Answers of two forms: told where nothing in the prompts says which is wanted, and not where it does."""

import json

import pytest
from planted import clean_rows

from topcoat.data.checks.forms import SAMPLE, mixed_formats
from topcoat.data.checks.settings import DataChecks
from topcoat.data.checks.verdict import check

FORMS = {
    "JSON": lambda text: json.dumps({"said": text}),
    "a result line (#### …)": lambda text: f"{text}\n#### 7",
    "a <think> block": lambda text: f"<think>So.</think>{text}",
}


def two_forms(share, name="JSON", n=200):
    rows = clean_rows(n)
    changed = [at for at in range(n) if (at * 37) % 100 < 100 * share]
    for at in changed:
        rows[at]["completion"] = FORMS[name](rows[at]["completion"])
    return rows, changed


@pytest.mark.parametrize("name", FORMS)
def test_a_file_half_in_one_form_is_told(name, corpus):
    rows, changed = two_forms(0.5, name)
    (finding,) = mixed_formats(corpus(rows))
    assert finding.what == f"the answers are of two forms: 50 % have {name} (100), 100 do not"
    assert finding.rows == changed
    assert finding.drop == []


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 0.89])
def test_the_rows_of_the_rarer_form_are_named(share, corpus):
    rows, changed = two_forms(share)
    (finding,) = mixed_formats(corpus(rows))
    lacking = [at for at in range(200) if at not in changed]
    assert finding.rows == (changed if share <= 0.5 else lacking)
    assert set(finding.details.values()) == {"has JSON" if share <= 0.5 else "lacks JSON"}


def test_fewer_than_a_tenth_are_an_accident_of_prose(corpus):
    assert mixed_formats(corpus(two_forms(0.08)[0])) == []


def test_prompts_or_system_turns_that_say_which_form_is_wanted_are_right(corpus):
    rows, changed = two_forms(0.5)
    for at in changed:
        rows[at]["prompt"] += " Answer as JSON."
    assert mixed_formats(corpus(rows)) == []
    rows, changed = two_forms(0.5)
    for at, row in enumerate(rows):
        row["system"] = "Write records." if at in changed else "Write prose."
    assert mixed_formats(corpus(rows)) == []


def test_tasks_of_one_form_among_tasks_of_the_other_are_right_though_no_one_word_says_so(corpus):
    rows, changed = two_forms(0.5)
    tasks = ("List each field", "Fill records", "Extract persons")
    for number, at in enumerate(changed):
        rows[at]["prompt"] = f"{tasks[number % 3]}: {rows[at]['prompt']}"
    assert mixed_formats(corpus(rows)) == []


def test_a_word_in_some_of_the_prompts_tells_nothing(corpus):
    rows, changed = two_forms(0.5)
    for at in changed[:50]:
        rows[at]["prompt"] += " Answer as JSON."
    assert len(mixed_formats(corpus(rows))) == 1


def test_calls_of_tools_among_answers_are_no_second_form(corpus):
    rows = []
    for at, row in enumerate(clean_rows(100)):
        call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {"a": at}}]}
        answer = call if at % 2 else {"role": "assistant", "content": row["completion"]}
        tools = [{"name": "add", "parameters": {"type": "object", "properties": {}}}]
        rows.append({"messages": [{"role": "user", "content": row["prompt"]}, answer], "tools": tools})
    assert mixed_formats(corpus(rows)) == []


def test_answers_with_code_in_front_and_behind_words_are_of_one_kind(corpus):
    rows = clean_rows(100)
    for row in rows[::2]:
        row["completion"] = "```python\nprint(1)\n```\n" + row["completion"]
    assert mixed_formats(corpus(rows)) == []


def test_of_many_rows_an_even_sample_is_asked_what_tells_them_apart(corpus):
    n = 4 * SAMPLE
    rows = [{"prompt": f"Say {at}.", "completion": '{"a": 1}' if at % 2 else "No."} for at in range(n)]
    (finding,) = mixed_formats(corpus(rows))
    assert len(finding.rows) == n // 2


def test_nothing_is_left_out_of_a_copy_for_it(corpus):
    one = next(o for o in check(corpus(two_forms(0.5)[0]), DataChecks()).found if o.check == "mixed_formats")
    assert one.finding.drop == []
