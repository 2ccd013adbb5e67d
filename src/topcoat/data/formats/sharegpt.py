"""sharegpt: {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}.

`from` may be system, human or user, gpt or assistant, and for tools function_call (an assistant turn: the model writes
the call, so it is trained) and observation or tool (a tool turn: what came back).
"""

from __future__ import annotations

from topcoat.data.conversation import BadRow, Conversation, chat, list_of, system_of, text_of, tools_of
from topcoat.data.rows import Row

COLUMNS = ("conversations",)
ROLE_OF = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


def recognise(columns: set[str]) -> bool:
    return "conversations" in columns


def to_conversation(row: Row) -> Conversation:
    """The row's turns as messages.

    Raises:
        BadRow: an unknown speaker, a value that is not text, or no assistant turn.
    """
    messages = system_of(row.values)
    for number, turn in enumerate(list_of(row.values, "conversations"), start=1):
        where = f"turn {number}: "
        if "from" not in turn and "role" in turn:
            fix = "set data.format: messages and data.columns: {messages: conversations}"
            raise BadRow(f'{where}"from" is missing; the message has {", ".join(turn)}', fix)
        speaker = text_of(turn, "from", where)
        if speaker not in ROLE_OF:
            raise BadRow(f"{where}the speaker {speaker!r} is unknown; expected one of {', '.join(ROLE_OF)}")
        messages.append({"role": ROLE_OF[speaker], "content": text_of(turn, "value", where)})
    return chat(messages, tools_of(row.values))
