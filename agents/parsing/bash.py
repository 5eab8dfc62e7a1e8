"""Tool calls as one fenced bash block (mini-swe-agent's way); the command ``submit`` submits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from agents.parsing.base import ParseError, as_text, reasoning, require_round_trip, written
from swe_env.types import Action

_CALL = "```bash\nCOMMAND\n```"
_BLOCK = re.compile(
    r"^(?P<fence>`{3,})(?:bash|sh)[ \t]*(?P<cr>\r?)\n(?P<code>.*?)\n?^(?P=fence)[ \t]*\r?$",
    re.DOTALL | re.MULTILINE,
)
_FENCE = re.compile(r"^[ \t]*`{3}", re.MULTILINE)


class BashFormat:
    """One fenced bash block after free reasoning."""

    name = "bash"
    stop = ""

    def system_prompt(self, tools: Sequence[Mapping[str, Any]]) -> str:  # noqa: ARG002 - protocol
        """The task and the format; every call is a command, so the tools need no list."""
        return (
            "Fix the issue in the repository. Each turn: one short thought, then one command:\n"
            f"{_CALL}\nA command that holds ``` itself stands between two lines of ````.\n"
            "When the issue is fixed, the command is: submit"
        )

    def render(self, action: Action) -> str:
        """The message, then the command in a fence (see `TextFormat.render`)."""
        if (whole := written(self, action)) is not None:
            return whole
        if action["tool"] == "submit" and not action["arguments"]:
            command = "submit"
        elif action["tool"] == "bash" and set(action["arguments"]) == {"command"}:
            command = as_text(action["arguments"]["command"])
        else:
            raise ParseError(f"The format bash has no way to call {action['tool']!r}.")
        fence = "```"
        while fence in command:
            fence += "`"
        text = f"{reasoning(action)}{fence}bash\n{command}\n{fence}"
        return require_round_trip(self, action, text)

    def parse(self, text: str) -> Action:
        """The one block, with no fence after it (see `TextFormat.parse`).

        Such a fence may be the block's true end, its first one a line of the command; a command
        that holds fences is written in a longer one. Line breaks of a CRLF reply become plain.
        """
        blocks = list(_BLOCK.finditer(text))
        if len(blocks) != 1:
            raise ParseError(
                f"The reply must hold exactly one bash block, found {len(blocks)}. Write:\n{_CALL}"
            )
        if _FENCE.search(text, blocks[0].end()):
            raise ParseError(
                "A line of ``` follows the bash block, so it is not clear where the command ends. "
                "Put a command that holds ``` between ````bash and ````, and nothing after it."
            )
        code = blocks[0].group("code")
        if blocks[0].group("cr"):
            code = code.replace("\r\n", "\n").removesuffix("\r")
        if code.strip() == "submit":
            return Action(tool="submit", arguments={}, message=text)
        return Action(tool="bash", arguments={"command": code}, message=text)
