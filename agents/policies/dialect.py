"""Calls of the default tools in the names and arguments of the tools that are offered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Call = tuple[str, dict[str, Any]]
"""(tool, arguments)"""

_SAMPLES: dict[str, dict[str, Any]] = {
    "view": {},
    "edit": {"path": "", "old_str": "", "new_str": ""},
    "search": {"query": ""},
    "bash": {"command": ""},
    "run_tests": {},
    "submit": {},
}


def offered(
    tool: str, arguments: dict[str, Any], tools: Sequence[Mapping[str, Any]]
) -> Call | None:
    """The call as these tools take it: as it is, or as one of R2E's; None where none does."""
    taken = parameters(tools)
    for name, given in ((tool, arguments), _in_r2e(tool, arguments)):
        if name in taken and given.keys() <= taken[name]:
            return name, given
    return None


def playable(tools: Sequence[Mapping[str, Any]]) -> set[str]:
    """The default tools that these tools can stand for."""
    return {tool for tool, given in _SAMPLES.items() if offered(tool, given, tools) is not None}


def parameters(tools: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Tool → names of its parameters."""
    functions = [tool["function"] for tool in tools]
    return {f["name"]: set(f.get("parameters", {}).get("properties", {})) for f in functions}


def _in_r2e(tool: str, given: dict[str, Any]) -> Call:
    if tool == "view":
        return "file_editor", {"command": "view", "path": ".", **given}
    if tool == "edit" and given.get("old_str"):
        return "file_editor", {"command": "str_replace", **given}
    if tool == "edit":
        new = {"path": given["path"], "file_text": given["new_str"]}
        return "file_editor", {"command": "create", **new}
    if tool == "search":
        named = {"query": "search_term"}
        return "search", {named.get(key, key): value for key, value in given.items()}
    if tool == "bash":
        return "execute_bash", {"cmd": given["command"]}
    return ("finish", given) if tool == "submit" else (tool, given)
