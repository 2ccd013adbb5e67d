"""Sides: what stands beside the prompts and answers of the rows: system turns, tool turns, the schemas of tools.

It is mostly the same in many rows, so each text is held once, and looked at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from topcoat.data.preferences import PreferencePair
from topcoat.data.row_formats import Parsed

BESIDE = "in a system turn or a tool's"
"""Where it was found, said to people."""
T = TypeVar("T")


def side_texts(messages: list[dict[str, Any]], parsed: Parsed) -> list[str]:
    """The texts beside the prompt and the answers of a row: in its `messages`, and in the worse answer of a pair."""
    rejected = parsed.rejected if isinstance(parsed, PreferencePair) else []
    found = [m["content"] for m in (*messages, *rejected) if m["role"] in ("system", "tool") and m.get("content")]
    return [*found, json.dumps(parsed.tools, ensure_ascii=False, sort_keys=True)] if parsed.tools else found


def uses_tools(messages: list[dict[str, Any]], parsed: Parsed) -> bool:
    """Whether a row has tools, calls of them, or what they said."""
    return bool(parsed.tools) or any("tool_calls" in m or m["role"] == "tool" for m in messages)


@dataclass
class Sides:
    """The texts of each row; equal ones are one object."""

    rows: list[tuple[str, ...]] = field(default_factory=list)
    _texts: dict[str, str] = field(default_factory=dict, repr=False)

    def add(self, texts: list[str], most: int) -> None:
        """One more row, with the first `most` characters of each text."""
        self.rows.append(tuple(self._texts.setdefault(text, text) for text in (text[:most] for text in texts)))

    def found(self, look: Callable[[str], T]) -> Iterator[tuple[int, T]]:
        """(row, what `look` says) for each text of which it says something, in the order of the rows.

        Each text is looked at once, in however many rows it stands.
        """
        said = {text: look(text) for text in self._texts}
        for at, texts in enumerate(self.rows):
            for text in texts:
                if said[text]:
                    yield at, said[text]
