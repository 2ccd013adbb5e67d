"""unpaired: {"prompt": ..., "completion": ..., "label": true}: an answer, labelled wanted or not.

Also `messages` (or `conversations`) whose last turn is the answer, with `label` or `kto_tag` beside them.
"""

from __future__ import annotations

from typing import Any

from topcoat.data.conversation import BadRow
from topcoat.data.lines import describe
from topcoat.data.preferences import LabelledAnswer, behind, check_prompt, read_answer, read_prompt
from topcoat.data.rows import Row
from topcoat.data.tool_calls import tools_of

COLUMNS = ("completion", "label")
LABELS = ("label", "kto_tag")
NUMBERED = {"1": True, "0": False, "1.0": True, "0.0": False}
TRUTH = {"true": True, "false": False, "1": True, "0": False}


def recognise(columns: set[str]) -> bool:
    has_answer = columns >= {"prompt", "completion"} or "messages" in columns or "conversations" in columns
    return has_answer and not columns.isdisjoint(LABELS)


def is_label(value: Any) -> bool:
    """Whether a value says wanted or not, beyond doubt: 0 and 1 may be numbers of classes."""
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false"))


def numbered(values: dict[str, Any]) -> bool | None:
    """What a label of 0 or 1 beside an answer says if it is no class: wanted or not. None where there is none."""
    if values.keys().isdisjoint(LABELS) or not recognise(set(values)):
        return None
    value = next((values[name] for name in LABELS if name in values), None)
    if is_label(value) or not isinstance(value, int | float | str):
        return None
    return NUMBERED.get(str(value).strip())


def to_labelled(row: Row) -> LabelledAnswer:
    """The labelled answer, checked.

    Raises:
        BadRow: no prompt, no answer, or a label that is neither true nor false.
    """
    values = row.values
    label = _label(values)
    if "completion" in values:
        prompt = read_prompt(values)
        completion = read_answer(values, "completion")
    else:
        whole = read_prompt(values)
        answers = [number for number, message in enumerate(whole) if message["role"] == "assistant"]
        at = answers[-1] if answers else len(whole)
        while at and whole[at - 1]["role"] == "assistant":
            at -= 1
        prompt, completion = whole[:at], whole[at:]
    doubts = check_prompt(prompt)
    return LabelledAnswer(prompt, behind(prompt, completion, "completion"), label, tools_of(values), doubts)


def _label(values: dict[str, Any]) -> bool:
    name = next((name for name in LABELS if name in values), "label")
    value = values.get(name)
    found = TRUTH.get(str(value).strip().lower()) if isinstance(value, bool | int | str) else None
    if found is None:
        said = describe(value) if name in values else "missing"
        raise BadRow(f'"{name}" is {said}; expected true (a wanted answer) or false')
    return found
