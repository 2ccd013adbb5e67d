"""Row formats: recognised or named, turned into conversations, and refused with the field that is wrong."""

from __future__ import annotations

import json

import pytest

from topcoat.data.conversation import Conversation
from topcoat.data.row_formats import ROW_FORMATS, to_conversations
from topcoat.data.rows import read_rows
from topcoat.errors import TopcoatError

USER, ANSWER = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be kind."}
CHAT = Conversation(messages=[USER, ANSWER])
ROWS = {
    "messages": ({"messages": [USER, ANSWER]}, CHAT),
    "sharegpt": ({"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]}, CHAT),
    "alpaca": ({"instruction": "Hello", "input": "", "output": "Hi"}, CHAT),
    "prompt_completion": ({"prompt": "Hello", "completion": "Hi"}, CHAT),
    "text": ({"text": "Hello"}, Conversation(text="Hello")),
}


def test_every_format_is_tried():
    assert set(ROWS) == {name for name, form in ROW_FORMATS.items() if form.kind == "conversation"}


@pytest.mark.parametrize("name", ROWS)
def test_a_format_is_recognised_from_its_columns_or_named(write, name):
    row, conversation = ROWS[name]
    rows = read_rows(write("a.jsonl", [{**row, "id": 7}]))
    assert to_conversations(rows, "auto", {}) == (name, [conversation])
    assert to_conversations(rows, name, {}) == (name, [conversation])


def one(write, row, form="auto", columns=None):
    return to_conversations(read_rows(write("a.jsonl", [row])), form, columns or {})[1][0]


def test_an_input_stands_behind_a_blank_line(write):
    row = {"instruction": "Translate.", "input": "Hello", "output": "Hallo"}
    assert one(write, row).messages[0]["content"] == "Translate.\n\nHello"
    assert one(write, {**row, "input": None}).messages[0]["content"] == "Translate."


@pytest.mark.parametrize("name", ["alpaca", "prompt_completion", "sharegpt"])
def test_a_system_column_becomes_the_system_turn(write, name):
    assert one(write, {**ROWS[name][0], "system": "Be kind."}).messages == [SYSTEM, USER, ANSWER]


def test_tool_turns_of_sharegpt_become_assistant_and_tool_turns(write):
    turns = [("human", "Add"), ("function_call", "add(1, 2)"), ("observation", "3"), ("assistant", "It is 3.")]
    row = {"conversations": [{"from": f, "value": v} for f, v in turns], "tools": '[{"name": "add"}]'}
    conversation = one(write, row)
    assert [m["role"] for m in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    assert conversation.tools == [{"type": "function", "function": {"name": "add"}}]


def test_text_blocks_are_joined_and_reasoning_is_kept(write):
    blocks = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    row = {"messages": [USER, {"role": "assistant", "content": blocks, "reasoning_content": "hm", "tool_calls": None}]}
    assert one(write, row).messages[1] == {**ANSWER, "reasoning_content": "hm"}


def test_a_csv_may_hold_messages_as_json(write):
    quoted = json.dumps([USER, ANSWER]).replace('"', '""')
    rows = read_rows(write("a.csv", f'messages\n"{quoted}"\n'))
    assert to_conversations(rows, "auto", {}) == ("messages", [CHAT])


def test_columns_rename(write):
    row = {"question": "Hello", "answer": "Hi", "prompt": "of another kind"}
    columns = {"prompt": "question", "completion": "answer"}
    assert one(write, row, columns=columns) == CHAT


def test_a_renamed_field_is_missing_where_its_column_is(write):
    rows = [{"question": "Hello", "completion": "Hi"}, {"prompt": "of another kind", "completion": "Hi"}]
    said = complaint(write, *rows, form="prompt_completion", columns={"prompt": "question"})
    assert said == 'a.jsonl line 2: "prompt" is missing; the row has completion'


def complaint(write, *rows, form="auto", columns=None) -> str:
    with pytest.raises(TopcoatError) as caught:
        to_conversations(read_rows(write("a.jsonl", rows)), form, columns or {})
    return str(caught.value)


def turn(**fields):
    return {"messages": [USER, {**ANSWER, **fields}]}


WRONG = {
    "number": (turn(content=17), 'a.jsonl line 1: message 2: "content" is a number (17); expected text'),
    "null": (turn(content=None), 'message 2: "content" is null; expected text'),
    "truth": (turn(content=True), '"content" is a truth value (true); expected text'),
    "object": (turn(content={"a": 1}), '"content" is an object with a; expected text'),
    "no content": (
        {"messages": [USER, {"role": "assistant"}]},
        'message 2: "content" is missing; the message has role',
    ),
    "unknown role": (turn(role="bot"), "message 2: the role 'bot' is unknown; expected one of system, user"),
    "misspelt role": (turn(role="asistant"), "fix:   did you mean 'assistant'?"),
    "a speaker's name": (turn(role="gpt"), "fix:   write 'assistant'"),
    "role in capitals": (turn(role="Assistant "), "fix:   write 'assistant'"),
    "no answer": ({"messages": [SYSTEM, USER]}, "there is no assistant turn (roles: system, user)"),
    "empty list": ({"messages": []}, '"messages" is an empty list'),
    "text": ({"messages": "Hello"}, '"messages" is text that is not JSON'),
    "python": ({"messages": "[{'role': 'user'}]"}, "it looks like Python"),
    "not a list": ({"messages": {"role": "user"}}, '"messages" is an object with role; expected a list of turns'),
    "null list": ({"messages": None}, '"messages" is null; expected a list of turns'),
    "list of texts": ({"messages": ["Hello"]}, "\"messages\" item 1 is text ('Hello'); expected an object"),
    "image": (
        turn(content=[{"type": "image_url"}]),
        "\"content\" holds an image (type 'image_url'); only text is read",
    ),
    "bare block": (turn(content=["Hi"]), "\"content\" has a part that is text ('Hi')"),
    "tool calls": (turn(tool_calls=[{"id": 1}]), 'message 2: call 1: "name" is missing; the message has id'),
    "weight": (turn(weight=0), 'message 2: "weight" is not supported'),
    "surrogate": (turn(content="a\ud83d"), '"content" holds \\ud83d, half a surrogate pair'),
    "bad tools": ({**turn(), "tools": {"name": "add"}}, '"tools" is an object with name; expected a list'),
    "sharegpt inside": ({"messages": [{"from": "human", "value": "x"}]}, "set data.format: sharegpt"),
    "messages inside": ({"conversations": [USER]}, "set data.format: messages"),
    "unknown speaker": ({"conversations": [{"from": "narrator", "value": "x"}]}, "the speaker 'narrator' is unknown"),
    "null value": ({"conversations": [{"from": "gpt", "value": None}]}, 'turn 1: "value" is null; expected text'),
    "null output": ({"instruction": "x", "output": None}, '"output" is null; expected text'),
    "wrong input": ({"instruction": "x", "input": 3, "output": "y"}, '"input" is a number (3); expected text'),
    "null prompt": ({"prompt": None, "completion": "x"}, '"prompt" is null; expected text'),
    "empty text": ({"text": " "}, '"text" is empty'),
    "unknown columns": ({"question": "x"}, "a.jsonl line 1: the columns question are of no known format (messages:"),
    "preference": ({"prompt": "x", "chosen": "y", "rejected": "z"}, "these are preference rows"),
    "kto": ({**turn(), "label": False}, "these are preference rows"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_row_is_refused_naming_the_field(write, case):
    row, expected = WRONG[case]
    assert expected in complaint(write, row)


def test_a_missing_field_of_a_named_format_is_said_with_the_fields_there_are(write):
    said = complaint(write, {"question": "x", "completion": "y"}, form="prompt_completion")
    assert said == 'a.jsonl line 1: "prompt" is missing; the row has question, completion'


def test_mixed_formats_are_refused_naming_both_lines(write):
    said = complaint(write, ROWS["messages"][0], ROWS["alpaca"][0])
    assert "a.jsonl line 2: this row is alpaca, but a.jsonl line 1 is messages: formats are mixed" in said


def test_every_bad_row_is_said(write):
    said = complaint(write, turn(content=1), turn(), turn(content=None), {"messages": [USER]})
    assert [f"line {n}" in said for n in (1, 2, 3, 4)] == [True, False, True, True]


def test_a_rename_must_name_a_column_of_the_file_and_a_field_of_a_format(write):
    said = complaint(write, {"q": "x"}, columns={"prompt": "question"})
    assert "data.columns names 'question', which no row has" in said
    assert "no format reads a column 'promt'" in complaint(write, {"q": "x"}, columns={"promt": "q"})
