"""`bash`: a command in the episode's shell."""

# ruff: noqa: D417 - `ctx` is not the model's to give, so the schema must not name it

from __future__ import annotations

from swe_env.errors import ToolError
from swe_env.tools.base import ToolContext, ToolResult, tool


@tool(samples=[{"command": "ls"}, {"command": "pwd"}])
def bash(ctx: ToolContext, command: str, timeout: float | None = None) -> ToolResult:
    """Run a command in a shell that keeps its folder and variables between calls.

    Args:
        command: What to run, as typed at a prompt.
        timeout: Seconds after which it is killed.
    """
    if not command.strip():
        raise ToolError("command is empty: say what to run.")
    if timeout is not None and timeout <= 0:
        raise ToolError("timeout must be more than 0 seconds.")
    seconds = min(timeout or ctx.command_timeout, ctx.command_timeout)
    result = ctx.sandbox.exec(command, timeout=seconds, output_limit=ctx.output_limit)
    notes = []
    if result.timed_out:
        notes.append(f"[killed: it ran longer than {seconds:g} s]")
    elif result.limit:
        notes.append(f"[killed: it went over the {result.limit} limit]")
    elif result.exit_code:
        notes.append(f"[exit code {result.exit_code}]")
    elif not result.output.strip():
        notes.append("[done, no output]")
    output = result.output.rstrip("\n")
    return ToolResult("\n".join([output, *notes] if output else notes), result.exit_code)
