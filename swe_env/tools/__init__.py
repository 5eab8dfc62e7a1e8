"""What an agent can do: typed functions whose schema comes from their signature."""

from swe_env.tools.base import (
    Tool,
    ToolContext,
    ToolResult,
    Toolset,
    presets,
    shorten,
    tool,
    tools,
    toolset,
)

__all__ = [
    "Tool",
    "ToolContext",
    "ToolResult",
    "Toolset",
    "presets",
    "shorten",
    "tool",
    "tools",
    "toolset",
]
