"""A command of the episode's shell over several calls: run, waited for, fed, interrupted."""

from __future__ import annotations

import time
from dataclasses import replace

from swe_env.errors import ToolError
from swe_env.tools.base import ToolContext
from swe_env.types import ExecResult

INTERRUPT = "ctrl+c"
_RUNNING = "shell_running"
_INTERRUPTED = "shell_interrupted"
_INPUT_ENDED = "shell_input_ended"
_NOTES = 400
"""Characters that notes about a command may take."""
_SLICE = 0.2
_QUIET = 2.0
"""Seconds without output after which a command that was fed is taken to wait for more."""
_HEEDED = 5.0
"""Seconds that a command has to end after an interrupt."""


def run(ctx: ToolContext, command: str, seconds: float, stdin: str = "") -> ExecResult:
    """Run a command; when it is not done after `seconds` it is left running.

    With `stdin` its input is that text and ends there; without, `feed` can type into it.

    Raises:
        ToolError: an earlier command still runs.
    """
    try:
        result = ctx.sandbox.exec(
            command,
            timeout=seconds,
            stdin=stdin.encode("utf-8", "surrogateescape"),
            output_limit=_room(ctx),
            keep_running=True,
        )
    except ToolError as error:
        raise ToolError(
            "a command still runs: wait for it with an empty command, or end it with "
            f'"{INTERRUPT}", before you run another.'
        ) from error
    ctx.state[_INPUT_ENDED] = bool(stdin)
    return _noted(ctx, result)


def running(ctx: ToolContext) -> bool:
    """Whether the last command was left running, as far as the tools know."""
    return bool(ctx.state.get(_RUNNING))


def poll(ctx: ToolContext, seconds: float) -> ExecResult:
    """Wait on for the command that was left running.

    Raises:
        ToolError: none is.
    """
    _require(ctx)
    return _resume(ctx, timeout=seconds)


def feed(ctx: ToolContext, text: str, seconds: float) -> ExecResult:
    """Give the running command a line, and wait until it ends or has answered and is quiet.

    Raises:
        ToolError: no command is running, or its input has ended.
    """
    _require(ctx)
    if ctx.state.get(_INPUT_ENDED):
        raise ToolError(
            "the running command was started with its whole input and takes no more: wait for it "
            f'with an empty command, or end it with "{INTERRUPT}".'
        )
    line = text if text.endswith("\n") else f"{text}\n"
    deadline = time.monotonic() + seconds
    result = _resume(ctx, stdin=line.encode("utf-8", "surrogateescape"), timeout=_SLICE)
    output, answered = result.output, time.monotonic()
    while result.running and time.monotonic() < deadline:
        result = _resume(ctx, timeout=min(_SLICE, max(deadline - time.monotonic(), 0.01)))
        if result.output:
            output, answered = output + result.output, time.monotonic()
        elif output and time.monotonic() - answered > _QUIET:
            break
    return replace(result, output=output)


def interrupt(ctx: ToolContext) -> ExecResult:
    """Send ctrl+c to the running command; one that did not heed the last is killed.

    Raises:
        ToolError: no command is running.
    """
    _require(ctx)
    if ctx.state.get(_INTERRUPTED):
        return _resume(ctx, kill=True)
    result = _resume(ctx, interrupt=True, timeout=_HEEDED)
    ctx.state[_INTERRUPTED] = result.running
    return result


def _require(ctx: ToolContext) -> None:
    if not running(ctx):
        raise ToolError("no command is running: give one to run.")


def _resume(
    ctx: ToolContext,
    *,
    stdin: bytes = b"",
    interrupt: bool = False,
    kill: bool = False,
    timeout: float = 60.0,
) -> ExecResult:
    try:
        result = ctx.sandbox.resume(
            stdin=stdin,
            interrupt=interrupt,
            kill=kill,
            timeout=timeout,
            output_limit=_room(ctx),
        )
    except ToolError:  # it went with an earlier shell: the episode was forked or restored
        ctx.state[_RUNNING] = False
        raise
    return _noted(ctx, result)


def _room(ctx: ToolContext) -> int:
    """Characters of output, so that with all notes it is not shortened a second time."""
    return max(ctx.output_limit - _NOTES, ctx.output_limit // 2)


def _noted(ctx: ToolContext, result: ExecResult) -> ExecResult:
    ctx.state[_RUNNING], ctx.state[_INTERRUPTED] = result.running, False
    return result
