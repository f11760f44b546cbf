"""Tools and calls of them, in the order and with the fields in which chat templates get to see them. Pure.

Templates write them out as JSON, so each field and its place counts. This is what vLLM makes of a request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def shown_tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """What cannot be a tool is shown as it is."""
    function = tool.get("function")
    if not isinstance(function, dict):
        return tool
    said = {name: function.get(name) for name in ("name", "description", "parameters")}
    strict = {} if function.get("strict") is None else {"strict": function["strict"]}
    return {"type": tool.get("type", "function"), "function": said | strict}


def shown_call(call: Any) -> Any:
    """The model wrote its arguments; templates want them as values, and what is no object of JSON as an empty one."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    said = {"arguments": _values(function.get("arguments")), "name": function.get("name")}
    ordered = {name: call[name] for name in ("id", "function", "type") if name in call} | {
        "function": said | _rest(function, said)
    }
    return ordered | _rest(call, ordered)


def _rest(given: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in known}


def _values(arguments: Any) -> Any:
    if isinstance(arguments, str) and arguments:
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return {}
    return arguments if isinstance(arguments, dict) else {}
