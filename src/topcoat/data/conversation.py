"""Conversation: what every row format becomes. Either chat messages, or one plain text; and the checks they share.

What cannot be trained as it stands is a BadRow. What can, but is often a mistake, is a doubt: a sentence that the
report counts over all rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from topcoat.data.lines import describe, names
from topcoat.json_files import loads

EMPTY_TURN = "a user turn is empty"
ROLES = ("system", "user", "assistant", "tool")


class BadRow(Exception):
    """A row that cannot become a conversation: what is wrong with it, and what to do."""

    def __init__(self, what: str, fix: str = "") -> None:
        self.what, self.fix = what, fix
        super().__init__(what)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Exactly one of `messages` and `text` is set.

    A message has `role` and `content`, both text. An assistant's may have `reasoning_content` (text) and `tool_calls`,
    a list of {"type": "function", "function": {"name": text, "arguments": object}} with an "id" where the row has one;
    a tool's may have `name` and `tool_call_id`. `tools` are the function schemas a chat template may write out.
    """

    messages: list[dict[str, Any]] | None = None
    text: str | None = None
    tools: list[dict[str, Any]] | None = None
    doubts: tuple[str, ...] = field(default=(), compare=False)
    """What is odd about the row, though it can be trained, such as "two user turns follow each other"."""


def text_of(values: dict[str, Any], field: str, where: str = "") -> str:
    """The text in `values[field]`; `where` is said in front, such as "message 2: ".

    Raises:
        BadRow: missing, null, not text, or text that has no UTF-8 form.
    """
    if field not in values:
        whole = "message" if where else "row"
        raise BadRow(f'{where}"{field}" is missing; the {whole} has {names(values) or "no fields"}')
    value = values[field]
    if not isinstance(value, str):
        fix = "write it as text, with json.dumps" if isinstance(value, dict | list) else ""
        raise BadRow(f'{where}"{field}" is {describe(value)}; expected text', fix)
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            what = f'{where}"{field}" holds \\u{code:04x}, half a surrogate pair and no character'
            raise BadRow(what, "the text was cut inside a character: write it again from its source") from error
    return value


def list_of(values: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """The list of objects in `values[field]`; a list written as a JSON string (as CSV must) is read.

    Raises:
        BadRow: missing, empty, or anything but a list of objects.
    """
    if field not in values:
        raise BadRow(f'"{field}" is missing; the row has {names(values) or "no fields"}')
    value = parse_json(values, field)
    if not isinstance(value, list):
        raise BadRow(f'"{field}" is {describe(value)}; expected a list of turns')
    if not value:
        raise BadRow(f'"{field}" is an empty list; expected at least one turn')
    for number, item in enumerate(value, start=1):
        if not isinstance(item, dict):
            raise BadRow(f'"{field}" item {number} is {describe(item)}; expected an object')
    return value


def parse_json(values: dict[str, Any], field: str, where: str = "") -> Any:
    """`values[field]`, parsed if it is a JSON string.

    Raises:
        BadRow: a text that is not JSON.
    """
    value = values[field]
    if not isinstance(value, str):
        return value
    try:
        return loads(value)
    except json.JSONDecodeError as error:
        hint = "; it looks like Python, write it with json.dumps" if value.lstrip().startswith(("[{'", "{'")) else ""
        raise BadRow(f'{where}"{field}" is text that is not JSON ({error.msg}, column {error.colno}){hint}') from error


def chat(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> Conversation:
    """A checked chat conversation, with what is odd about the order of its turns.

    Raises:
        BadRow: no assistant turn, so there is nothing to train on; or a tool turn that answers no call.
    """
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise BadRow(
            f"there is no assistant turn (roles: {names(roles)}), so nothing to train on",
            "complete the conversation, or take the row out",
        )
    return Conversation(messages=messages, tools=tools, doubts=odd_turns(messages))


def odd_turns(messages: list[dict[str, Any]]) -> tuple[str, ...]:
    """What is odd about the order of the turns.

    Raises:
        BadRow: a tool turn that answers no call.
    """
    doubts = {}
    roles = [message["role"] for message in messages]
    if _take_turns(tuple(roles)):
        is_odd = any(not message["content"].strip() for message in messages if message["role"] == "user")
        return (EMPTY_TURN,) if is_odd else ()
    for number, (before, role) in enumerate(zip(["", *roles], roles, strict=False), start=1):
        if role == "tool" and before not in ("assistant", "tool"):
            behind = f"behind a {before} turn" if before else "at the start"
            raise BadRow(f"message {number}: a tool turn stands {behind}; it must follow the assistant turn that calls")
        if role == "system" and before not in ("", "system"):
            doubts["a system turn stands behind other turns; most templates know one at the start"] = True
        if role == before == "system":
            doubts["two system turns follow each other"] = True
        if role == before == "user":
            doubts["two user turns follow each other"] = True
        if role == before == "assistant" and not _is_call(messages[number - 1]):
            doubts["two assistant turns follow each other"] = True
    first = next((role for role in roles if role != "system"), "")
    if first == "assistant":
        doubts["the conversation begins with an assistant turn: it is trained to answer nothing"] = True
    if roles[-1] != "assistant":
        doubts["the last turn is not an assistant turn: nothing is trained on it"] = True
    if any(message["role"] == "user" and not message["content"].strip() for message in messages):
        doubts[EMPTY_TURN] = True
    return tuple(doubts)


@lru_cache(4096)
def _take_turns(roles: tuple[str, ...]) -> bool:
    """Whether a user and an assistant speak in turns, the user first and the assistant last; a system turn may lead."""
    turns = roles[1:] if roles[:1] == ("system",) else roles
    return bool(turns) and turns == ("user", "assistant") * (len(turns) // 2)


def _is_call(message: dict[str, Any]) -> bool:
    """Whether a turn may stand behind another assistant turn: a call behind the words that announce it."""
    return "tool_calls" in message or message["content"].lstrip()[:1] == "{"


def system_of(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The optional `system` column of alpaca and sharegpt rows, as zero or one message."""
    if values.get("system") in (None, ""):
        return []
    return [{"role": "system", "content": text_of(values, "system")}]
