"""One prompt, two answers: told where they cannot both be right, and not where they say the same or anything goes."""

import pytest
from planted import clean_rows

from topcoat.data.checks.contradictions import contradictions
from topcoat.data.checks.finding import Finding


@pytest.fixture
def asked(corpus):
    """asked(prompt, answer, ...) -> what is found in clean rows with these answers to one prompt at 5, 15, 25, ..."""

    def run(prompt: str, *answers: str, system: tuple[str, ...] = ()) -> list[Finding]:
        rows = clean_rows(60)
        for number, answer in enumerate(answers):
            rows[5 + 10 * number] = {"prompt": prompt, "completion": answer}
            if system:
                rows[5 + 10 * number]["system"] = system[number]
        return contradictions(corpus(rows))

    return run


CAPITAL = "What is the capital of Australia?"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Canberra.", "Sydney."),
        ("It is Canberra.", "sydney"),
        ("3,000", "3001"),
        ("-5", "5"),
        ("C", "C++"),
        ("Canberra", "Not Canberra"),
        ("北京", "上海"),
    ],
)
def test_two_short_answers_to_one_prompt_are_told(one, other, asked):
    (finding,) = asked(CAPITAL, one, other)
    assert finding.rows == [5, 15]
    assert finding.what == "2 rows give other short answers to the same prompt"
    assert finding.details[15] == f"“{other}”, line 6 asks the same"
    assert finding.drop == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Canberra.", "canberra"),
        ("Canberra", "It is Canberra, Australia."),
        ("The number 3,000.", "3000"),
        ("e-mail", "E mail"),
        ("The cat", "A cat."),
        ("Canberra", "The capital was moved there in 1927, from Melbourne, and it has stayed there ever since."),
        ("Canberra", "…"),
    ],
)
def test_answers_that_may_say_the_same_are_not(one, other, asked):
    assert asked(CAPITAL, one, other) == []


@pytest.mark.parametrize(
    "prompt",
    [
        "Name a fruit.",
        "Give me one word for rain.",
        "Suggest the name of a dog.",
        "Pick a number.",
        "What is your name?",
    ],
)
def test_prompts_that_any_answer_fits_are_passed_over(prompt, asked):
    assert asked(prompt, "Apple", "Pear") == []


def test_one_answer_that_agrees_with_none_of_the_others_is_told_with_them(asked):
    (finding,) = asked(CAPITAL, "Canberra", "Sydney", "Canberra, Australia", "canberra.")
    assert finding.rows == [5, 15, 25, 35]
    assert asked(CAPITAL, "Canberra", "Canberra, Australia", "Australia") == []


def test_a_prompt_that_was_answered_in_many_ways_asks_for_any(corpus):
    rows = clean_rows(60)
    for at in range(10):
        rows[at] = {"prompt": CAPITAL, "completion": f"Number {at}"}
    assert len(contradictions(corpus(rows))) == 1
    rows[10] = {"prompt": CAPITAL, "completion": "Number 10"}
    assert contradictions(corpus(rows)) == []


def test_other_system_turns_ask_other_things(asked):
    assert asked(CAPITAL, "Canberra", "Sydney", system=("Tell the truth.", "Lie.")) == []
    assert len(asked(CAPITAL, "Canberra", "Sydney", system=("Tell the truth.", "Tell the truth."))) == 1


def test_results_and_short_answers_are_told_apart(asked):
    (finding,) = asked("How many are there?", "So it is\n#### 7", "So it is\n#### 8")
    assert finding.what == "2 rows answer the same prompt in different ways"
    assert finding.drop == [5, 15]
    assert [one.what.split()[1:3] for one in asked("Is it?", "Yes, it is.", "No, it is not.")] == [["rows", "answer"]]
