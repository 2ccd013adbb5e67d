"""messages: {"messages": [{"role": "user", "content": "..."}, ...]}, as OpenAI and TRL write chats.

Roles are system (or developer), user, assistant and tool (or function). `content` is text, or a list of parts of which
text, reasoning and tool calls are read; an image or a sound is refused. `reasoning_content` (or `reasoning`,
`thinking`) and `tool_calls` are handed to the template. A weight other than 1 (or train, training, loss: false)
would change what is trained and is refused, never dropped in silence; other fields of a message are ignored.
"""

from __future__ import annotations

import difflib
from typing import Any

from topcoat.data.conversation import ROLES, BadRow, Conversation, chat, list_of, text_of
from topcoat.data.formats.sharegpt import ROLE_OF
from topcoat.data.lines import describe, names, shown
from topcoat.data.rows import Row
from topcoat.data.tool_calls import call_of_text, doubts_about, tool_calls_of, tools_of

COLUMNS = ("messages",)
SAME_ROLE = {"developer": "system", "function": "tool"}
PLAIN_ROLES = ("user", "assistant", "system")  # what most turns are: nothing else has to be looked at
REASONING = ("reasoning_content", "reasoning", "thinking")
CHOICES = ("weight", "train", "training", "loss")  # how other trainers are told which turns to train
TEXT_PARTS = ("text", "input_text", "output_text")
MEDIA_PARTS = {
    "image": "an image",
    "image_url": "an image",
    "input_image": "an image",
    "audio": "a sound",
    "audio_url": "a sound",
    "input_audio": "a sound",
    "video": "a video",
    "video_url": "a video",
    "file": "a file",
    "input_file": "a file",
}


def recognise(columns: set[str]) -> bool:
    return "messages" in columns


def to_conversation(row: Row) -> Conversation:
    """The row's messages, checked.

    Raises:
        BadRow: a turn with an unknown role, content that is not text, a malformed call, or no assistant turn.
    """
    messages, tools = read_messages(row.values, "messages"), tools_of(row.values)
    conversation = chat(messages, tools)
    doubts = (*conversation.doubts, *doubts_about(messages, tools))
    return Conversation(messages=messages, tools=tools, doubts=doubts)


def read_messages(values: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """The messages in `values[field]`, of any roles. Raises BadRow."""
    return [message(turn, f"message {number}: ") for number, turn in enumerate(list_of(values, field), start=1)]


def message(turn: dict[str, Any], where: str) -> dict[str, Any]:
    """One message as templates read it. Raises BadRow."""
    if len(turn) == 2 and turn.get("role") in PLAIN_ROLES:
        content = turn.get("content")
        if isinstance(content, str) and content.isascii():
            return {"role": turn["role"], "content": content}
    if "role" not in turn and "from" in turn:
        fix = "set data.format: sharegpt and data.columns: {conversations: messages}"
        raise BadRow(f'{where}"role" is missing; the message has {names(turn)}', fix)
    role = text_of(turn, "role", where)
    role = SAME_ROLE.get(role, role)
    if role not in ROLES:
        raise BadRow(f"{where}the role {shown(role)!r} is unknown; expected one of {', '.join(ROLES)}", _nearest(role))
    for name in CHOICES:
        if turn.get(name) not in (None, 1):  # 1 is true
            fix = "take the row out, or train only its last answer with data.loss_on: last_turn"
            raise BadRow(f'{where}"{name}" is not supported: it would leave the turn untrained', fix)
    calls = tool_calls_of(turn, where)
    content = turn.get("content")
    reasoning = ""
    if isinstance(content, list):
        content, reasoning, more = _parts(content, where)
        calls += more
    elif content is None and calls:
        content = ""
    else:
        content = text_of(turn, "content", where)
    found: dict[str, Any] = {"role": role, "content": content}
    for field in REASONING:
        if turn.get(field):
            reasoning += text_of(turn, field, where)
    if role != "assistant" and (calls or reasoning):
        raise BadRow(f"{where}only an assistant turn may {'call tools' if calls else 'reason'}; its role is {role}")
    if reasoning:
        found["reasoning_content"] = reasoning
    if calls:
        found["tool_calls"] = calls
    if role == "tool":
        found |= {key: text_of(turn, key, where) for key in ("name", "tool_call_id") if turn.get(key) is not None}
    return found


def _nearest(role: str) -> str:
    """What to write for a role that is none, or nothing where it is like none."""
    plain = role.strip().lower()
    if plain in ROLES:
        return f"write {plain!r}"
    if plain in ROLE_OF:  # a speaker of sharegpt's
        return f"write {ROLE_OF[plain]!r}"
    near = difflib.get_close_matches(plain, ROLES, n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def _parts(parts: list[Any], where: str) -> tuple[str, str, list[dict[str, Any]]]:
    """(text, reasoning, calls) of a content that is a list of typed parts."""
    text, reasoning, calls = "", "", []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in TEXT_PARTS:
            text += text_of(part, "text" if "text" in part or "value" not in part else "value", where)
        elif kind in ("reasoning", "thinking"):
            reasoning += text_of(part, next((key for key in (kind, "text") if key in part), "value"), where)
        elif kind == "tool_call":
            calls.append(call_of_text(text_of(part, "value", where), where))
        elif isinstance(kind, str) and kind in MEDIA_PARTS:
            what = f'{where}"content" holds {MEDIA_PARTS[kind]} (type {kind!r}); only text is read'
            raise BadRow(what, "take the row out: Topcoat trains text models")
        else:
            said = f"of type {shown(kind)!r}" if isinstance(part, dict) else f"that is {describe(part)}"
            raise BadRow(f'{where}"content" has a part {said}; only text parts are read', "write the content as text")
    return text, reasoning, calls
