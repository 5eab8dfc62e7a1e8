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
    count = len(found.pieces)
    if first < 1 or last < first - 1 or last > count or first > count + 1:
        raise ToolError(f"lines {first} to {last} are outside {path}, which has {count} lines.")
    new = TextFile(replaced(found, first, last, text), found.bom)
    return change(ctx, path, new.encode(), data)


def replaced(found: TextFile, first: int, last: int, text: str) -> str:
    """The file's text with lines `first` to `last` replaced; all other bytes are as they were.

    New lines end as their neighbours do; only a line that gets one behind it gains an end.
    """
    lines = found.pieces
    near = lines[first - 1 : first] or lines[-1:]
    newline = "\r\n" if near and near[0].endswith("\r\n") else found.newline
    fresh = text.replace("\r\n", "\n")
    open_ended = last == len(lines) and bool(lines) and not lines[-1].endswith("\n")
    if fresh and not fresh.endswith("\n") and not open_ended:
        fresh += "\n"
    before, after = "".join(lines[: first - 1]), "".join(lines[last:])
    if fresh and before and not before.endswith("\n"):
        before += newline
    return before + fresh.replace("\n", newline) + after
