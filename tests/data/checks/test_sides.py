"""System turns, tool turns and tools are looked at as the prompts and answers are, and each text only once."""

import json
import time

import pytest
from planted import clean_rows

from topcoat.data.checks.corpus import MOST_CHARACTERS
from topcoat.data.checks.files import check_files
from topcoat.data.checks.fix import fix
from topcoat.data.checks.private import SECRETS, find
from topcoat.data.checks.settings import DataChecks
from topcoat.data.checks.verdict import check
from topcoat.data.settings import DataSettings

KEY = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA7bq9Xw" * 4
TOOL = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}


def chats(n=60, system="Be kind."):
    return [
        {
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for row in clean_rows(n)
    ]


def in_system(row, text):
    row["messages"][0]["content"] += f" {text}"


def in_tool(row, text):
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {}}]}
    row["messages"][2:2] = [call, {"role": "tool", "content": f"It says {text}"}]
    row["tools"] = [TOOL]


def in_schema(row, text):
    row["tools"] = [{**TOOL, "description": text}]


PLACES = [in_system, in_tool, in_schema]
SPOILED = {
    "secrets": ("AKIAQ3EGPJ7LMN2RSTUV", "AWS access key"),
    "personal_data": ("jane.miller@gmail.com", "e-mail address"),
    "mojibake": ("a cafÃ© here", "“Ã©” for “é”"),
    "hidden_characters": ("a\u202eb", "U+202E RIGHT-TO-LEFT OVERRIDE"),
    "template_text": ("see <|im_start|> there", "'<|im_start|>'"),
}


@pytest.mark.parametrize("put", PLACES, ids=lambda put: put.__name__)
@pytest.mark.parametrize("name", SPOILED)
def test_what_is_wrong_in_a_system_turn_or_a_tools_is_found_and_said_to_be_there(name, put, corpus):
    rows = chats()
    text, said = SPOILED[name]
    put(rows[7], text)
    (one,) = check(corpus(rows), DataChecks()).found
    assert (one.check, one.rows) == (name, [7])
    assert one.finding.details == {7: f"{said} (in a system turn or a tool's)"}


@pytest.mark.parametrize("put", PLACES, ids=lambda put: put.__name__)
def test_a_private_key_stops_wherever_it_stands(put, corpus):
    rows = chats()
    put(rows[3], KEY)
    verdict = check(corpus(rows), DataChecks())
    assert verdict.exit_code == 1
    assert verdict.stops[0].rows == [3]


def test_kinds_in_prompt_and_system_turn_are_counted_together(corpus):
    rows = chats()
    in_system(rows[7], "AKIAQ3EGPJ7LMN2RSTUV")
    rows[7]["messages"][1]["content"] += " redis://worker:s8dKq2Lm@cache.corp.net:6379"
    in_system(rows[2], KEY)
    (one,) = check(corpus(rows), DataChecks()).found
    assert one.rows == [2, 7]
    kinds = one.finding.what.removeprefix("2 rows hold secrets: ").split(", ")
    assert sorted(kinds) == ["AWS access key (1)", "password in a URL (1)", "private key (1)"]


def test_the_copy_has_none_of_it(tmp_path):
    rows = chats()
    texts = ["jane.miller@gmail.com", KEY, "a\u202eb", "a cafÃ© here"]
    for at, (put, text) in enumerate(zip([*PLACES, in_system], texts, strict=True)):
        put(rows[10 * at], text)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings(train=str(tmp_path / "a.jsonl"), validation=None)
    done = fix(check_files(settings), settings, tmp_path / "b.jsonl")
    assert set(done.mended) == {"personal_data", "secrets", "hidden_characters", "mojibake"}
    assert check_files(DataSettings(train=str(tmp_path / "b.jsonl"), validation=None)).found == []
    assert "a café here" in (tmp_path / "b.jsonl").read_text()


def test_a_text_that_stands_in_many_rows_is_held_and_looked_at_once(corpus):
    held = corpus(chats(500, system="Always be kind. " * 4000))
    assert len({id(texts[0]) for texts in held.sides.rows}) == 1
    looked = []
    found = list(held.sides.found(lambda text: looked.append(text) or "x"))
    assert (len(looked), len(found)) == (1, 500)
    start = time.process_time()
    check(held, DataChecks(one_topic="off", wrong_language="off"))
    assert time.process_time() - start < 3


def test_of_a_tools_text_without_end_the_beginning_is_looked_at(corpus):
    rows = chats()
    in_tool(rows[4], "x " * MOST_CHARACTERS)
    held = corpus(rows)
    assert max(len(text) for text in held.sides.rows[4]) == MOST_CHARACTERS
    assert "only the beginning was looked at" in held.doubts[4][-1]


def test_what_a_tool_said_before_the_worse_answer_is_looked_at_too(corpus):
    answers = [{"role": "assistant", "content": "I look."}, {"role": "tool", "content": f"Here: {KEY}"}]
    rows = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "No."} for row in clean_rows(60)]
    rows[9]["rejected"] = [*answers, {"role": "assistant", "content": "No."}]
    verdict = check(corpus(rows), DataChecks())
    assert verdict.stops[0].rows == [9]
    assert list(find(KEY, SECRETS))
