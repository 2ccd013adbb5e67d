"""text: {"text": "..."}: plain text, every token trained, the model's end-of-text token behind it.

No chat template is applied, and special tokens written in the text are read as special tokens.
"""

from __future__ import annotations

from topcoat.data.conversation import BadRow, Conversation, text_of
from topcoat.data.rows import Row

COLUMNS = ("text",)


def recognise(columns: set[str]) -> bool:
    return "text" in columns


def to_conversation(row: Row) -> Conversation:
    """The text as it stands.

    Raises:
        BadRow: missing, null, not text, or empty.
    """
    text = text_of(row.values, "text")
    if not text.strip():
        raise BadRow('"text" is empty')
    return Conversation(text=text)
