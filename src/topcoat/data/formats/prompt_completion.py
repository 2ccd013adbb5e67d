"""prompt_completion: {"prompt": "...", "completion": "..."}, an optional "system" besides.

The prompt is the user's turn and the completion the assistant's, both through the model's own chat template: what is
trained is then what chat and serving ask for. Text that must reach the model as it stands is the format `text`.
"""

from __future__ import annotations

from topcoat.data.conversation import Conversation, chat, system_of, text_of
from topcoat.data.rows import Row

COLUMNS = ("prompt", "completion")


def recognise(columns: set[str]) -> bool:
    return columns.issuperset(COLUMNS)


def to_conversation(row: Row) -> Conversation:
    """One user turn and one assistant turn.

    Raises:
        BadRow: a field is missing, null or not text.
    """
    user = {"role": "user", "content": text_of(row.values, "prompt")}
    answer = {"role": "assistant", "content": text_of(row.values, "completion")}
    return chat([*system_of(row.values), user, answer])
