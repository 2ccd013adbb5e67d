"""Tool calls and tools of a row, in the one shape chat templates read: OpenAI's, with arguments as an object.

    tools       [{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}]
    tool_calls  [{"id": ..., "type": "function", "function": {"name": ..., "arguments": {...}}}]

Arguments written as a JSON text, bare {"name", "arguments"}, and the older `function_call` and `functions` are read.
"""

from __future__ import annotations

import json
from typing import Any

from topcoat.data.conversation import BadRow, parse_json, text_of
from topcoat.data.lines import describe

DEEPEST = 64  # levels of brackets in tools and arguments; a template walks them recursively


def tools_of(values: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The row's `tools` (or the older `functions`), or a JSON string of them; None where there are none.

    Raises:
        BadRow: not a list of function schemas with names.
    """
    field = "functions" if values.get("tools") in (None, "", []) else "tools"
    if values.get(field) in (None, "", []):
        return None
    tools = parse_json(values, field)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow(f'"{field}" is {describe(tools)}; expected a list of function schemas')
    check_plain(tools, f'"{field}"')
    return [_tool(tool, f'"{field}" item {number}: ') for number, tool in enumerate(tools, start=1)] or None


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    function = tool.get("function", tool)
    if not isinstance(function, dict):
        raise BadRow(f'{where}"function" is {describe(function)}; expected an object')
    if not text_of(function, "name", where):
        raise BadRow(f"{where}the function has no name")
    # what a server hands to the template, so what is trained is what will be asked
    return tool if "function" in tool else {"type": "function", "function": tool}


def tool_calls_of(turn: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The calls of one message, from `tool_calls` or the older `function_call`; empty where there are none.

    Raises:
        BadRow: a call without a name, or whose arguments are no object.
    """
    found = turn.get("tool_calls")
    if found in (None, "", [], {}):
        one = turn.get("function_call")
        return [] if one in (None, "", {}) else [_call(parse_json(turn, "function_call", where), f"{where}its call: ")]
    calls = parse_json(turn, "tool_calls", where)
    if not isinstance(calls, list):
        raise BadRow(f'{where}"tool_calls" is {describe(calls)}; expected a list of calls')
    return [_call(call, f"{where}call {number}: ") for number, call in enumerate(calls, start=1)]


def call_of_text(text: str, where: str) -> dict[str, Any]:
    """The call that a JSON text {"name": ..., "arguments": {...}} writes out. Raises BadRow."""
    return _call(parse_json({"tool_call": text}, "tool_call", where), where)


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(function, dict):
        raise BadRow(f'{where}it is {describe(function)}; expected {{"name": ..., "arguments": {{...}}}}')
    name = text_of(function, "name", where)
    if not name.strip():
        raise BadRow(f"{where}the function has no name")
    given = function.get("arguments", function.get("parameters"))
    if isinstance(given, str):
        given = parse_json({"arguments": given}, "arguments", where) if given.strip() else {}
    arguments = {} if given is None else given
    if not isinstance(arguments, dict):
        raise BadRow(f'{where}"arguments" is {describe(arguments)}; expected an object, or its JSON text')
    check_plain(arguments, f'{where}"arguments"')
    plain: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"id": text_of(call, "id", where), **plain} if call.get("id") is not None else plain


def check_plain(value: Any, what: str) -> None:
    """Raises BadRow for what a template cannot write out as JSON: too deep, not JSON's types, half a character."""
    if _deeper(value, DEEPEST):
        raise BadRow(f"{what} is nested more than {DEEPEST} levels deep")
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"{what} holds half a surrogate pair and no character") from error
    except (TypeError, ValueError) as error:
        raise BadRow(f"{what} holds what JSON cannot write: {error}") from error


def _deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    return levels == 0 or any(_deeper(v, levels - 1) for v in (value.values() if isinstance(value, dict) else value))


def doubts_about(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> tuple[str, ...]:
    """What is odd about the calls of a conversation."""
    if not tools and all(len(message) == 2 for message in messages):
        return ()
    doubts = {}
    known = {str(tool.get("function", {}).get("name")) for tool in tools or []}
    ids: set[str] = set()
    for message in messages:
        for call in message.get("tool_calls", ()):
            ids.add(call.get("id", ""))
            if tools and call["function"]["name"] not in known:
                doubts["a call names a function that its tools do not have"] = True
        if message.get("tool_call_id", "") not in ids | {""}:
            doubts["a tool turn answers a call id that no call has"] = True
    return tuple(doubts)
