"""Rows that can be trained and are often a mistake: answers marked 0 or 1, and files in another language."""

import pytest
from planted import clean_rows, label_rows

from topcoat.data.checks.consistency import odd_rows
from topcoat.data.checks.language import wrong_language

GERMAN = (
    "Der alte Hafen liegt am Ufer des Flusses, und die Fischer reparieren dort jeden Abend ihre Netze, bevor sie nach "
    "Hause gehen und das Essen kochen."
)


@pytest.mark.parametrize("name", ["label", "kto_tag"])
@pytest.mark.parametrize("written", [int, str, float], ids=["numbers", "texts", "parts of numbers"])
def test_answers_marked_zero_or_one_are_told_with_the_unwanted(written, name, corpus):
    rows = [{**row, name: written(int(at % 3 > 0))} for at, row in enumerate(clean_rows(60))]
    (finding,) = odd_rows(corpus(rows))
    assert finding.what == "every row has a label of 0 or 1 beside its answer, and 20 are 0"
    assert "data.format: unpaired" in finding.fix
    assert finding.rows == list(range(0, 60, 3))


def test_chats_marked_zero_or_one_are_told_too(corpus):
    rows = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ],
            "label": at % 2,
        }
        for at, row in enumerate(clean_rows(60))
    ]
    assert len(odd_rows(corpus(rows))) == 1


@pytest.mark.parametrize(
    "rows",
    [
        [{**row, "label": at % 3} for at, row in enumerate(clean_rows(60))],
        [{**row, "label": 1} for row in clean_rows(60)],
        [{**row, "label": 0} if at else row for at, row in enumerate(clean_rows(60))],
        [{**row, "label": at % 2} for at, row in enumerate(label_rows(60, ("bad", "good")))],
        [{"text": row["completion"], "label": at % 2} for at, row in enumerate(clean_rows(60))],
    ],
    ids=["three classes", "all wanted", "one without", "a class in words and as a number", "texts"],
)
def test_other_labels_beside_answers_are_left(rows, corpus):
    assert odd_rows(corpus(rows)) == []


def test_a_file_mostly_in_another_language_than_its_prompts_is_told_once(corpus):
    rows = clean_rows(60)
    for row in rows[:54]:
        row["completion"] = GERMAN
    (finding,) = wrong_language(corpus(rows))
    assert finding.what == (
        "90 % of the answers are in another language than the prompt: asked in en, answered in de (54 rows)"
    )
    assert finding.rows == list(range(54))
    assert finding.drop == [], "a copy is not emptied for it"
    for row in rows:
        row["prompt"] = f"Answer in German: {row['prompt']}"
    assert wrong_language(corpus(rows)) == []
