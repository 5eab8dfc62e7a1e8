"""R2E's four tools by name and meaning, for models and comparisons that expect that scaffold."""

# ruff: noqa: D417 - `ctx` is not the model's to give, so the schema must not name it

from __future__ import annotations

import re
from typing import Literal

from swe_env.errors import ToolError
from swe_env.tools.base import ToolContext, ToolResult, tool
from swe_env.tools.bash import bash
from swe_env.tools.edit import edit
from swe_env.tools.edit_lines import edit_lines
from swe_env.tools.search import search as plain_search
from swe_env.tools.undo import undo
from swe_env.tools.view import view

R2E = tuple(
    f"swe_env.tools.r2e:{name}" for name in ("file_editor", "execute_bash", "search", "finish")
)
"""The preset "r2e"."""

Command = Literal["view", "create", "str_replace", "insert", "undo_edit"]


@tool(register=False, samples=[{"command": "view"}])
def file_editor(
    ctx: ToolContext,
    command: Command,
    path: str = "",
    file_text: str | None = None,
    old_str: str | None = None,
    new_str: str | None = None,
    insert_line: int | None = None,
    view_range: list[int] | None = None,
) -> ToolResult:
    """View, create and edit files; str_replace needs old_str to be unique in the file.

    Args:
        command: What to do.
        path: File or folder, absolute or relative to the repository's root.
        file_text: Content of the new file, for create.
        old_str: Passage to replace, for str_replace.
        new_str: What stands there instead, for str_replace; the new lines, for insert.
        insert_line: Line after which to insert, 0 for the beginning, for insert.
        view_range: First and last line, for view; -1 as last means the end.
    """
    if command == "view":
        return view(ctx, {"path": path, "view_range": view_range})
    if command == "undo_edit":
        return undo(ctx, {})
    if command == "create":
        if file_text is None:
            raise ToolError("create needs file_text, the content of the new file.")
        return edit(ctx, {"path": path, "new_str": file_text})
    if command == "str_replace":
        if not old_str:
            raise ToolError("str_replace needs old_str, the passage to replace.")
        return edit(ctx, {"path": path, "old_str": old_str, "new_str": new_str or ""})
    if insert_line is None or new_str is None:
        raise ToolError("insert needs insert_line and new_str.")
    lines = {"first": insert_line + 1, "last": insert_line, "text": new_str}
    return edit_lines(ctx, {"path": path, **lines})


@tool(register=False, samples=[{"cmd": "ls"}])
def execute_bash(ctx: ToolContext, cmd: str) -> ToolResult:
    """Run a command in a shell that keeps its folder and variables between calls.

    Args:
        cmd: What to run.
    """
    return bash(ctx, {"command": cmd})


@tool(register=False, samples=[{"search_term": "def "}])
def search(
    ctx: ToolContext, search_term: str, path: str = ".", python_only: bool = True
) -> ToolResult:
    """Find the lines that contain a term, in one file or in all files below a folder.

    Args:
        search_term: The text to find.
        path: Folder or file to search.
        python_only: Whether only Python files are searched.
    """
    place = "" if path == "." else path
    found = plain_search(ctx, {"query": search_term, "path": place})
    if not python_only or found.exit_code:
        return found
    lines = [line for line in found.text.splitlines() if re.match(r"[^:]*\.pyi?:\d+: ", line)]
    return ToolResult("\n".join(lines) or f"No Python line contains {search_term!r}.")


@tool(register=False)
def finish(ctx: ToolContext, command: Literal["submit"] = "submit", result: str = "") -> ToolResult:
    """Hand in the repository as it is now; ends the episode.

    Args:
        command: Always "submit".
        result: What was done, in a sentence.
    """
    del ctx, command, result
    return ToolResult("Submitted.", submitted=True)
