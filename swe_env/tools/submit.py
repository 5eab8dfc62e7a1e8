"""`submit`: hand the work in."""

from __future__ import annotations

from swe_env.tools.base import ToolContext, ToolResult, tool


@tool
def submit(ctx: ToolContext) -> ToolResult:
    """Hand in the repository as it is now; ends the episode, hidden tests then judge it."""
    del ctx
    return ToolResult("Submitted.", submitted=True)
