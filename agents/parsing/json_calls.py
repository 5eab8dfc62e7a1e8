"""Tool calls as one JSON object, fenced or bare.

``{"tool": "view", "arguments": {"path": "a.py"}}``
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agents.parsing.base import (
    ParseError,
    describe_tools,
    read_json,
    reasoning,
    require_round_trip,
    written,
)
from swe_env.types import Action

_CALL = '{"tool": "NAME", "arguments": {"KEY": "value"}}'
_START = re.compile(r"\{\s*\"")


class JSONFormat:
    """One JSON object after free reasoning; numbers and lists keep their types."""

    name = "json"
    stop = ""

    def system_prompt(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """The task, the format and the tools."""
        return (
            "Fix the issue in the repository. Each turn: one short thought, then one call:\n"
            f"```json\n{_CALL}\n```\nTools:\n{describe_tools(tools)}"
        )

    def render(self, action: Action) -> str:
        """The message, then the call as a fenced object (see `TextFormat.render`)."""
        if (whole := written(self, action)) is not None:
            return whole
        call = {"tool": action["tool"], "arguments": dict(action["arguments"])}
        text = f"{reasoning(action)}```json\n{json.dumps(call, ensure_ascii=False)}\n```"
        return require_round_trip(self, action, text)

    def parse(self, text: str) -> Action:
        """The first object that has a ``tool`` (see `TextFormat.parse`)."""
        problem = ""
        for start in _START.finditer(text):
            try:
                found = read_json(text, start.start())
            except ParseError as error:
                problem = problem or f" ({error})"
                continue
            if isinstance(found, dict) and "tool" in found:
                return self._action(found, text)
        raise ParseError(
            f"The reply holds no JSON tool call{problem}. Write one like this:\n{_CALL}"
        )

    def _action(self, found: dict[str, Any], text: str) -> Action:
        tool, arguments = found["tool"], found.get("arguments", {})
        if not isinstance(tool, str) or not isinstance(arguments, dict):
            raise ParseError(f'"tool" must be a string and "arguments" an object, like:\n{_CALL}')
        return Action(tool=tool, arguments=arguments, message=text)
