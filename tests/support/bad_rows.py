"""Paths that are no files of rows, and rows that cannot be trained. The cases of test_bad_files.py."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from bad_files import ANSWER, LINES, ROW, USER, chat


def call(**fields: Any) -> list[dict[str, Any]]:
    """A conversation with one tool call."""
    return chat(USER, {"role": "assistant", "content": None, "tool_calls": [fields]})


def function(**fields: Any) -> list[dict[str, Any]]:
    return call(id="1", type="function", function=fields)


PAIR = {"prompt": "Hello", "chosen": "Hi", "rejected": "No"}


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "a.jsonl")
    return folder / "a.jsonl"


def unix_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(folder)  # the address may have 108 bytes
        try:
            made.bind("a.jsonl")
        finally:
            os.chdir(here)
    return folder / "a.jsonl"


def link(folder: Path, to: str) -> Path:
    (folder / "a.jsonl").symlink_to(to)
    return folder / "a.jsonl"


def good_link(folder: Path) -> Path:
    (folder / "b.jsonl").write_text(LINES)
    return link(folder, "b.jsonl")


def near(folder: Path) -> Path:
    (folder / "train.jsonl").write_text(LINES)
    return folder / "trian.jsonl"


def directory(folder: Path) -> Path:
    (folder / "a.jsonl").mkdir()
    (folder / "a.jsonl" / "part.jsonl.zst").touch()
    return folder / "a.jsonl"


PATHS: dict[str, tuple] = {
    "a folder": ("", directory, "error", "is a folder; expected one file of rows; it holds part.jsonl.zst"),
    "a pipe": ("", fifo, "error", "is a pipe; expected a file of rows"),
    "a socket": ("", unix_socket, "error", "is a socket; expected a file of rows"),
    "a device": ("", lambda folder: Path("/dev/zero"), "error", "/dev/zero is a device; expected a file of rows"),
    "a link": ("", good_link, "fine", 3),
    "a link in a circle": ("", lambda f: link(f, "a.jsonl"), "error", "is a symbolic link that leads back to itself"),
    "a link to nothing": (
        "",
        lambda f: link(f, "gone.jsonl"),
        "error",
        "is a symbolic link to gone.jsonl, which is no",
    ),
    "nothing": ("", near, "error", "there is train.jsonl"),
    "no such folder": ("", lambda f: f / "no" / "a.jsonl", "error", "is not there either; check the path"),
    "a file for a folder": ("", lambda f: good_link(f) / "a.jsonl", "error", "there is no file"),
    "a long name": ("", lambda f: f / ("x" * 300 + ".jsonl"), "error", "is too long for a file name"),
    "a NUL in the path": ("", lambda f: f / "a\0b.jsonl", "error", "is no path: embedded null"),
    "a Windows path": ("", lambda f: Path(r"C:\data\train.jsonl"), "error", "folders are separated by / here"),
    "an address": ("", lambda f: Path("https://example.org/a.jsonl"), "error", "only files of this machine are read"),
    "a home": ("", lambda f: Path("~/no-such-file.jsonl"), "error", "write the folder out: /"),
}

ROWS: dict[str, tuple] = {
    "a field is missing": (
        "a.jsonl",
        [ROW, {"prompt": "x"}],
        "error",
        'line 2: "completion" is missing; the row has pr',
    ),
    "a field is null": ("a.jsonl", [{**ROW, "completion": None}], "error", 'line 1: "completion" is null'),
    "a field is a number": ("a.jsonl", [{**ROW, "prompt": 5}], "error", 'line 1: "prompt" is a number (5)'),
    "a field is an object": ("a.jsonl", [{**ROW, "prompt": {"a": 1}}], "error", "write it as text, with json.dumps"),
    "an empty object": ("a.jsonl", [{}], "error", "the columns (none) are of no known format"),
    "formats mixed": (
        "a.jsonl",
        [ROW, {"text": "x"}],
        "error",
        "line 2: this row is text, but a.jsonl line 1 is prompt",
    ),
    "a long column": ("a.jsonl", [{"x" * 2**20: 1}], "error", f"the columns {'x' * 40}… are of no known"),
    "a steering column": ("a.jsonl", [{"\x1b[31m": 1}], "error", r"the columns \x1b[31m are of no known format"),
    "an unknown role": ("a.jsonl", chat(USER, "robot"), "error", "message 2: the role 'robot' is unknown"),
    "a capital role": ("a.jsonl", chat(USER, "Assistant"), "error", "write 'assistant'"),
    "a role that is a number": ("a.jsonl", chat(USER, {"role": 1}), "error", 'message 2: "role" is a number (1)'),
    "no turns": ("a.jsonl", [{"messages": []}], "error", '"messages" is an empty list'),
    "no assistant turn": ("a.jsonl", chat("user"), "error", "there is no assistant turn (roles: user)"),
    "only a system turn": ("a.jsonl", chat("system"), "error", "there is no assistant turn (roles: system)"),
    "a turn is a text": ("a.jsonl", [{"messages": ["Hello"]}], "error", '"messages" item 1 is text'),
    "content is a number": ("a.jsonl", chat(USER, {**ANSWER, "content": 1}), "error", '"content" is a number (1)'),
    "content is text parts": ("a.jsonl", chat(USER, {**ANSWER, "content": [{"type": "text", "text": "a"}]}), "fine", 1),
    "content is an image": ("a.jsonl", chat({**USER, "content": [{"type": "image"}]}), "error", "holds an image"),
    "content is a sound": ("a.jsonl", chat({**USER, "content": [{"type": "input_audio"}]}), "error", "holds a sound"),
    "content is an unknown part": (
        "a.jsonl",
        chat({**USER, "content": [{"type": "x"}]}),
        "error",
        "a part of type 'x'",
    ),
    "images beside a chat": ("a.jsonl", chat(USER, ANSWER, images=["a.png"]), "error", "it is multi-modal"),
    "two user turns": ("a.jsonl", chat(USER, USER, ANSWER), "note", "two user turns follow each other (first: a.jsonl"),
    "two assistant turns": ("a.jsonl", chat(USER, ANSWER, ANSWER), "note", "two assistant turns follow each other"),
    "the assistant first": ("a.jsonl", chat(ANSWER, USER, ANSWER), "note", "begins with an assistant turn"),
    "the user last": ("a.jsonl", chat(USER, ANSWER, USER), "note", "the last turn is not an assistant turn"),
    "a late system turn": ("a.jsonl", chat(USER, "system", ANSWER), "note", "a system turn stands behind other turns"),
    "two system turns": ("a.jsonl", chat("system", "system", USER, ANSWER), "note", "two system turns follow each oth"),
    "an empty user turn": ("a.jsonl", chat({**USER, "content": " "}, ANSWER), "note", "a user turn is empty"),
    "a tool without a call": ("a.jsonl", chat(USER, "tool", ANSWER), "error", "a tool turn stands behind a user turn"),
    "tool calls": ("a.jsonl", function(name="f", arguments={"a": 1}), "fine", 1),
    "arguments as text": ("a.jsonl", function(name="f", arguments='{"a": 1}'), "fine", 1),
    "calls that are text": (
        "a.jsonl",
        chat(USER, {**ANSWER, "tool_calls": "f()"}),
        "error",
        '"tool_calls" is text that',
    ),
    "a call without a name": ("a.jsonl", function(arguments={}), "error", 'message 2: call 1: "name" is missing'),
    "a call with an empty name": ("a.jsonl", function(name=" "), "error", "call 1: the function has no name"),
    "arguments cut off": (
        "a.jsonl",
        function(name="f", arguments='{"a": '),
        "error",
        '"arguments" is text that is not',
    ),
    "arguments in a list": (
        "a.jsonl",
        function(name="f", arguments=[1]),
        "error",
        '"arguments" is a list of 1; expected',
    ),
    "arguments too deep": (
        *("a.jsonl", function(name="f", arguments='{"a":' * 80 + "1" + "}" * 80)),
        *("error", "is nested more than 64 levels deep"),
    ),
    "a user who calls": (
        "a.jsonl",
        chat({**USER, "tool_calls": [{"name": "f"}]}, ANSWER),
        "error",
        "only an assistant",
    ),
    "an unknown function": (
        *("a.jsonl", [{**function(name="f")[0], "tools": [{"name": "g"}]}]),
        *("note", "a call names a function that its tools do not have"),
    ),
    "an unknown call id": (
        *(
            "a.jsonl",
            [{"messages": [*function(name="f")[0]["messages"], {**USER, "role": "tool", "tool_call_id": "9"}]}],
        ),
        *("note", "a tool turn answers a call id that no call has"),
    ),
    "tools that are text": ("a.jsonl", chat(USER, ANSWER, tools="f(x)"), "error", '"tools" is text that is not JSON'),
    "a tool without a name": ("a.jsonl", chat(USER, ANSWER, tools=[{}]), "error", '"tools" item 1: "name" is missing'),
    "tools too deep": (
        "a.jsonl",
        chat(USER, ANSWER, tools="[" * 90 + "]" * 90),
        "error",
        "expected a list of function",
    ),
    "a weight": ("a.jsonl", chat(USER, {**ANSWER, "weight": 0}), "error", 'message 2: "weight" is not supported'),
    "a pair": ("a.jsonl", [PAIR], "error", "for an objective like DPO; sft trains one"),
    "a pair's fix": ("a.jsonl", [PAIR], "error", "set data.columns: {completion: chosen}"),
    "labelled answers": ("a.jsonl", [{**ROW, "label": True}], "error", "for an objective like KTO"),
    "a class beside a chat": ("a.jsonl", [{**ROW, "label": 3}], "fine", 1),
    "an answer empty after strip": ("a.jsonl", [{**ROW, "completion": " \n"}], "fine", 1),
    "an empty text": ("a.jsonl", [{"text": " "}], "error", 'line 1: "text" is empty'),
}
