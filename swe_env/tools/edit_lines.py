"""`edit_lines`: replace a range of lines, or insert between two lines."""

# ruff: noqa: D417 - `ctx` is not the model's to give, so the schema must not name it

from __future__ import annotations

from swe_env.errors import ToolError
from swe_env.tools.base import ToolContext, tool
from swe_env.tools.changes import change
from swe_env.tools.text import TextFile, is_binary


@tool
def edit_lines(ctx: ToolContext, path: str, first: int, last: int, text: str = "") -> str:
    """Replace lines of a file by text; with last = first - 1, insert before line first.

    Args:
        path: File to change, relative to the repository's root.
        first: First line to replace, counted from 1.
        last: Last line to replace; first - 1 to replace none and insert.
        text: The new lines; empty to delete.
    """
    data = ctx.sandbox.files.read(path)
    if is_binary(data):
        raise ToolError(f"{path} is a binary file: it cannot be edited as text.")
    found = TextFile.decode(data)
    lines = found.pieces
    if first < 1 or last < first - 1 or last > len(lines) or first > len(lines) + 1:
        raise ToolError(
            f"lines {first} to {last} are outside {path}, which has {len(lines)} lines."
        )
    fresh = text.replace("\r\n", "\n")
    at_end = last == len(lines)
    if fresh and not fresh.endswith("\n") and not (at_end and lines and _open_ended(lines)):
        fresh += "\n"
    before = "".join(lines[: first - 1])
    if fresh and before and not before.endswith("\n"):
        before += found.newline
    body = fresh.replace("\n", found.newline)
    new = TextFile(before + body + "".join(lines[last:]), found.bom)
    return change(ctx, path, new.encode(), data)


def _open_ended(lines: list[str]) -> bool:
    """Whether the file has no final line end."""
    return not lines[-1].endswith("\n")
