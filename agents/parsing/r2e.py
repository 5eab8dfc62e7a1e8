"""R2E-Gym's function tags after free reasoning.

<function=NAME>
<parameter=KEY>value</parameter>
</function>

A value is taken as it is, less one newline after its opening tag and one before its closing tag.
A closing tag counts only where the structure allows it (before the next parameter, the end of the
function, or the end of the text), so code with angle brackets needs no escaping.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from agents.parsing.base import (
    ParseError,
    UnclosedError,
    as_text,
    describe_tools,
    reasoning,
    require_round_trip,
    written,
)
from swe_env.tools.describe import function_text
from swe_env.types import Action

_CALL = "<function=NAME>\n<parameter=KEY>value</parameter>\n</function>"
_OPEN = re.compile(r"<function=\s*([\w.-]+)\s*>")
_PARAMETER = re.compile(r"\s*<parameter=\s*([\w.-]+)\s*>")
_CLOSE = re.compile(r"</parameter>(?=\s*(?:<parameter=|</function>|\Z))")
_END = re.compile(r"\s*(?:</function>|\Z)")


class R2EFormat:
    """Function tags after free reasoning (see the module)."""

    name = "r2e"
    stop = "</function>"

    def system_prompt(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """The task, the format and the tools."""
        return (
            "Fix the issue in the repository. Each turn: one short thought, then one call:\n"
            f"{_CALL}\nTools:\n{describe_tools(tools)}"
        )

    def render(self, action: Action) -> str:
        """The message, then the call in tags (see `TextFormat.render`)."""
        if (whole := written(self, action)) is not None:
            return whole
        lines = [f"{reasoning(action)}<function={action['tool']}>"]
        for key, value in action["arguments"].items():
            text = as_text(value)
            padded = f"\n{text}\n" if "\n" in text else text
            lines.append(f"<parameter={key}>{padded}</parameter>")
        return require_round_trip(self, action, "\n".join([*lines, "</function>"]))

    def parse(self, text: str) -> Action:
        """The first call; a missing last ``</function>`` is forgiven (see `TextFormat.parse`)."""
        opening = _OPEN.search(text)
        if opening is None:
            raise ParseError(f"The reply holds no tool call. Write one like this:\n{_CALL}")
        position, arguments = opening.end(), {}
        while parameter := _PARAMETER.match(text, position):
            key = parameter.group(1)
            closing = _CLOSE.search(text, parameter.end())
            if closing is None:
                raise UnclosedError(f"<parameter={key}> is not closed. Write a call like:\n{_CALL}")
            if key in arguments:
                raise ParseError(f"The parameter {key!r} is given twice. Give each one once.")
            arguments[key] = _strip(text[parameter.end() : closing.start()])
            position = closing.end()
        if _END.match(text, position) is None:
            stray = text[position:].strip().split("\n")[0][:40]
            raise ParseError(
                f"Inside <function={opening.group(1)}> only parameters may stand, found {stray!r}. "
                f"Write a call like:\n{_CALL}"
            )
        return Action(tool=opening.group(1), arguments=arguments, message=text)


class R2EGymFormat(R2EFormat):
    """The same tags, with a prompt laid out as R2E-Gym's: every tool and parameter in full."""

    name = "r2e-gym"

    def system_prompt(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """The task, all that the schemas say of the tools, and the format."""
        return (
            "You are a programming agent: resolve an issue of the repository in the current "
            "folder.\n\nYou can call these functions:\n\n"
            f"{function_text(tools)}\n\n"
            "Reply with your reasoning, then one function call in this form and nothing after it:"
            f"\n\n{_CALL}\n\nA value may take several lines. Required parameters must be given."
        )


def _strip(value: str) -> str:
    return value.removeprefix("\n").removesuffix("\n")
