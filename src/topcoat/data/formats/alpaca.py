"""alpaca: {"instruction": "...", "input": "... or empty", "output": "..."}, an optional "system" besides.

The user's turn is the instruction, then a blank line and the input if there is one; the output is the assistant's
turn. Both go through the model's own chat template, not the "### Instruction:" text of the original.
"""

from __future__ import annotations

from topcoat.data.conversation import Conversation, chat, system_of, text_of
from topcoat.data.rows import Row

COLUMNS = ("instruction", "output")


def recognise(columns: set[str]) -> bool:
    return columns.issuperset(COLUMNS)


def to_conversation(row: Row) -> Conversation:
    """One user turn and one assistant turn.

    Raises:
        BadRow: a field is missing, null or not text.
    """
    user = text_of(row.values, "instruction")
    if row.values.get("input") not in (None, ""):
        user += "\n\n" + text_of(row.values, "input")
    answer = {"role": "assistant", "content": text_of(row.values, "output")}
    return chat([*system_of(row.values), {"role": "user", "content": user}, answer])
