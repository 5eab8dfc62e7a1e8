"""`undo`: take the last edit back."""

from __future__ import annotations

from swe_env.tools.base import ToolContext, tool
from swe_env.tools.changes import take_back


@tool
def undo(ctx: ToolContext) -> str:
    """Take back the last edit made with the editing tools; can be called several times."""
    return f"Took back the last edit: {', '.join(take_back(ctx))}."
