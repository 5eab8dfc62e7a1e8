"""`edit`: replace one exact passage of a file, or create a file."""

# ruff: noqa: D417 - `ctx` is not the model's to give, so the schema must not name it

from __future__ import annotations

from swe_env.errors import ToolError
from swe_env.tools.base import ToolContext, tool
from swe_env.tools.changes import change
from swe_env.tools.matching import replace
from swe_env.tools.text import TextFile, is_binary


@tool
def edit(ctx: ToolContext, path: str, old_str: str = "", new_str: str = "") -> str:
    """Replace one passage of a file, or create a file.

    Args:
        path: File to change, relative to the repository's root.
        old_str: The passage to replace, copied exactly; it must occur once in the file. Empty
            to create a new file.
        new_str: What stands there instead; with old_str empty, the new file's content.
    """
    files = ctx.sandbox.files
    entry = files.stat(path)
    if not old_str:
        if entry is not None and entry.kind == "dir":
            raise ToolError(f"{path} is a folder: give the path of a file.")
        if entry is not None and entry.size:
            raise ToolError(f"{path} exists: give old_str, the passage of it to replace.")
        old = None if entry is None else files.read(path)
        return change(ctx, path, new_str.encode("utf-8", "surrogateescape"), old)
    if entry is None:
        raise ToolError(f"there is no file {path!r} to edit: leave old_str empty to create it.")
    if old_str == new_str:
        raise ToolError("nothing to do: old_str and new_str are the same.")
    data = files.read(path)
    if is_binary(data):
        raise ToolError(f"{path} is a binary file: it cannot be edited as text.")
    found = TextFile.decode(data)
    fresh = replace(found, path, old_str, new_str)
    return change(ctx, path, TextFile(fresh.text, found.bom).encode(), data, fresh.said)
