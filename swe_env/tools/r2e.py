"""R2E's four tools by name, arguments and result lines, for models trained on that scaffold.

What it promises works here: a command that is not done can be polled, fed and interrupted; files of
every kind can be viewed; a search says that it looks at Python files only. Paths may be relative to
the repository's root or absolute, ``/testbed/…`` in every sandbox.
"""

# ruff: noqa: D417 - `ctx` is not the model's to give, so the schema must not name it

from __future__ import annotations

import re
from typing import Literal

from swe_env.errors import ToolError
from swe_env.tools import search as searching
from swe_env.tools import terminal
from swe_env.tools.base import ToolContext, ToolResult, inside, tool
from swe_env.types import ExecResult

R2E = (
    "swe_env.tools.r2e_editor:file_editor",
    *(f"swe_env.tools.r2e:{name}" for name in ("execute_bash", "search", "finish")),
)
"""The preset "r2e"."""
_LINES = 40
"""Lines of a command's output that are kept at its head, and at its tail."""
_FILES = 100
_ANSI = re.compile(r"\x1b\[[0-9;]*m|\r")
_RULE = "-" * 50
_RUNNING = (
    'The command is still running. Call execute_bash with cmd "" for more of its output, with '
    '"ctrl+c" to interrupt it, or with text that it reads from its standard input.'
)


def executed(name: str, text: str, exit_code: int = 0) -> ToolResult:
    """A tool's answer under the scaffold's heading."""
    return ToolResult(f"Execution output of [{name}]:\n{text}", exit_code)


@tool(register=False, samples=[{"cmd": "ls"}], aliases={"command": "cmd"})
def execute_bash(ctx: ToolContext, cmd: str) -> ToolResult:
    """Run a command in a shell that keeps its folder and variables between calls.

    Exit code -1 means that it is still running: an empty cmd then waits for more of its output,
    "ctrl+c" interrupts it (a second time: kills it), and anything else is typed into it.

    Args:
        cmd: The bash command to run.
    """
    seconds = ctx.command_timeout
    try:
        result = _over_several_calls(ctx, cmd, seconds)
    except ToolError as error:
        return executed("execute_bash", f"ERROR: {error}", 1)
    output = _ANSI.sub("", result.output).strip()
    parts = [f"[STDOUT]\n\n{_middle_out(output)}\n\n[STDERR]\n"]
    if result.running:
        code, after = "-1", [_RUNNING]
    elif result.exit_code:
        code, after = f"Error: Exit code {result.exit_code}", []
        parts.insert(0, "Error executing command:\n")
    else:
        code, after = "0", []
    text = "\n".join([f"Exit code: {code}", "Execution output of [execute_bash]:", *parts, *after])
    return ToolResult(text, result.exit_code)


def _over_several_calls(ctx: ToolContext, cmd: str, seconds: float) -> ExecResult:
    wanted = cmd.strip().lower()
    if wanted == terminal.INTERRUPT:
        return terminal.interrupt(ctx)
    if not wanted:
        return terminal.poll(ctx, seconds)
    if terminal.running(ctx):
        try:
            return terminal.feed(ctx, cmd, seconds)
        except ToolError:
            pass  # it went with an earlier shell
    return terminal.run(ctx, cmd, seconds)


def _middle_out(output: str) -> str:
    lines = output.splitlines()
    if len(lines) <= 2 * _LINES:
        return output
    said = "<Observation truncated in middle for saving context>"
    left_out = f"[{len(lines) - 2 * _LINES} lines left out]"
    return "\n".join([*lines[:_LINES], _RULE, said, left_out, _RULE, *lines[-_LINES:]])


@tool(register=False, samples=[{"search_term": "def "}])
def search(
    ctx: ToolContext, search_term: str, path: str = ".", python_only: bool = True
) -> ToolResult:
    """Search for a term in a folder or a file.

    In a folder, the files that contain it are listed with how many of their lines do; in a file,
    those lines with their numbers.

    Args:
        search_term: The text to find.
        path: File or folder to search; the repository's root when left out.
        python_only: Whether only Python files of a folder are searched.
    """
    if not search_term:
        return executed("search", "ERROR: search_term is empty: say what to find.", 1)
    place = inside(ctx, path)
    entry = ctx.sandbox.files.stat(place)
    shown = f"{ctx.sandbox.workdir}/{place}".rstrip("/")
    if entry is None:
        return executed("search", f"ERROR: {shown!r} not found: neither a file nor a folder.", 1)
    if entry.kind == "dir":
        return executed("search", _in_folder(ctx, search_term, place, shown, python_only))
    return executed("search", _in_file(ctx, search_term, place, shown))


def _in_folder(ctx: ToolContext, term: str, place: str, shown: str, python_only: bool) -> str:
    find = searching.literal(term)
    counts: dict[str, int] = {}
    skipped = False
    for name, data in searching.contents_of(ctx, place):
        if any(part.startswith(".") for part in name.split("/")):
            continue
        if count := sum(1 for _ in searching.hits(data, find)):
            if python_only and not name.endswith((".py", ".pyi")):
                skipped = True
            else:
                counts[name] = count
    only = " Other files than Python do: python_only=False searches them." if skipped else ""
    if not counts:
        return f'No matches found for "{term}" in {shown}{"." if only else ""}{only}'
    if len(counts) > _FILES:
        return (
            f'More than {_FILES} files matched for "{term}" in {shown}: {len(counts)} do. '
            "Please narrow your search."
        )
    listed = [f"./{name} ({count} matches)" for name, count in counts.items()]
    head = f'Found {sum(counts.values())} matches for "{term}" in {shown}:'
    return "\n".join([head, *listed, f'End of matches for "{term}" in {shown}{only}'])


def _in_file(ctx: ToolContext, term: str, place: str, shown: str) -> str:
    """Lines with the term as it stands; when there are none, as grep's expression."""
    found: list[str] = []
    for _, data in searching.contents_of(ctx, place):
        lines = list(searching.hits(data, searching.literal(term)))
        if not lines:
            try:
                lines = list(searching.hits(data, searching.expression(_extended(term))))
            except ToolError:
                lines = []
        found = [f"{number}:{line.decode('utf-8', 'replace').rstrip()}" for number, line in lines]
    if not found:
        return f'No matches found for "{term}" in {shown}'
    return "\n".join([f'Matches for "{term}" in {shown}:', *found])


def _extended(term: str) -> str:
    r"""Grep's basic expression, where ``\|`` is special and ``|`` is not, the other way round."""
    return re.sub(r"\\([|(){}+?])|([|(){}+?])", lambda mark: mark[1] or f"\\{mark[2]}", term)


@tool(register=False, also=("submit",))
def finish(ctx: ToolContext, command: Literal["submit"] = "submit", result: str = "") -> ToolResult:
    """Hand in the repository as it is now; ends the episode.

    Args:
        command: Always "submit".
        result: What was done, in a sentence.
    """
    del ctx, command, result
    return ToolResult("<<< Finished >>>", submitted=True)
