"""Columns: read under other names, or made into text."""

from __future__ import annotations

import pytest

from topcoat.errors import TopcoatError


def test_columns_are_renamed_and_a_wrong_one_is_said_with_the_nearest(load, write):
    data = [{"question": "What?", "answer": "That."}, {"question": "Who?", "answer": "They."}]
    path = write("a.jsonl", data)
    assert load(path, columns={"prompt": "question", "completion": "answer"}).train[1].row.line == 2
    with pytest.raises(TopcoatError, match=r"data\.columns names 'qestion', which no row has") as caught:
        load(path, columns={"prompt": "qestion", "completion": "answer"})
    assert "did you mean 'question'? the columns are answer, question" in str(caught.value)
    with pytest.raises(TopcoatError, match="no format reads a column 'promt'"):
        load(path, columns={"promt": "question"})


def test_text_is_made_of_columns(load, write, chatml):
    path = write("a.jsonl", [{"question": "What?", "answer": 7}, {"question": "Who {x}?", "answer": "They."}])
    data = load(path, text_template="Q: {question}\nA: {answer} {{ok}}")
    decoded = [chatml.tokenizer.decode(example.input_ids) for example in data.train]
    assert decoded == ["Q: What?\nA: 7 {ok}<|im_end|>", "Q: Who {x}?\nA: They. {ok}<|im_end|>"]
    assert data.report.format == "text"
    assert all(example.labels == example.input_ids for example in data.train)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Q: {qestion}", "data.text_template names 'qestion', which no row has"),
        ("no column", "data.text_template names no column"),
        ("{question!r}", "{question!r} is no column"),
        ("{question:>9}", "{question:>9} is no column"),
        ("{}", "{} is no column"),
        ("{question", "data.text_template cannot be read: expected '}' before end of string"),
        ("{more}", '"more" is a list of 1; data.text_template takes text and numbers'),
    ],
)
def test_a_wrong_text_template_is_refused(load, write, template, message):
    path = write("a.jsonl", [{"question": "What?", "more": ["x"]}])
    with pytest.raises(TopcoatError) as caught:
        load(path, text_template=template)
    assert message in str(caught.value)


def test_a_column_that_one_row_lacks_is_said_with_the_row(load, write):
    path = write("a.jsonl", [{"question": "What?", "answer": "a"}, {"question": "Who?"}])
    with pytest.raises(TopcoatError, match=r'line 2: "answer" is missing, which data\.text_template names'):
        load(path, text_template="{question} {answer}")
