"""`bash`: a command in the episode's shell."""

# ruff: noqa: D417 - `ctx` is not the model's to give, so the schema must not name it

from __future__ import annotations

from swe_env.errors import ToolError
from swe_env.tools import terminal
from swe_env.tools.base import ToolContext, ToolResult, tool
from swe_env.tools.terminal import INTERRUPT
from swe_env.types import ExecResult


@tool(samples=[{"command": "ls"}, {"command": "pwd"}])
def bash(
    ctx: ToolContext, command: str = "", timeout: float | None = None, stdin: str = ""
) -> ToolResult:
    """Run a command in a shell that keeps its folder and variables between calls.

    One that is not done in time goes on: wait for more with an empty command, end it with "ctrl+c".

    Args:
        command: What to run, as typed at a prompt; empty to wait for the command that still runs;
            "ctrl+c" to interrupt it, a second time to kill it.
        timeout: Seconds to wait for its end.
        stdin: A line typed into the command that still runs, with command empty; with a new
            command, its whole input, which then ends.
    """
    if timeout is not None and not timeout > 0:  # nor NaN, which is not more than anything
        raise ToolError("timeout must be more than 0 seconds.")
    seconds = min(timeout or ctx.command_timeout, ctx.command_timeout)
    wanted = command.strip()
    if wanted.lower() == INTERRUPT:
        result = terminal.interrupt(ctx)
    elif wanted:
        result = terminal.run(ctx, command, seconds, stdin)
    elif stdin:
        result = terminal.feed(ctx, stdin, seconds)
    elif terminal.running(ctx):
        result = terminal.poll(ctx, seconds)
    else:
        raise ToolError("command is empty and none is running: say what to run.")
    return ToolResult(_text(result), result.exit_code)


def _text(result: ExecResult) -> str:
    notes = []
    if result.running:
        notes.append(
            f'[still running: an empty command waits on, stdin feeds it, "{INTERRUPT}" ends it]'
        )
    elif result.exit_code and not result.timed_out:  # a limit or a kill is told by the sandbox
        notes.append(f"[exit code {result.exit_code}]")
    elif not result.output.strip():
        notes.append("[done, no output]")
    output = result.output.rstrip("\n")
    return "\n".join([output, *notes] if output else notes)
