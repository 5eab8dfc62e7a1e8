"""`outline`: the classes and functions of a file, or of the Python files below a folder."""

# ruff: noqa: D417 - `ctx` is not the model's to give, so the schema must not name it

from __future__ import annotations

from swe_env.errors import ToolError
from swe_env.sandbox.base import Files
from swe_env.tools.base import ToolContext, inside, tool
from swe_env.tools.ignore import visible
from swe_env.tools.outline import outline as listing
from swe_env.tools.outline import symbols
from swe_env.tools.text import TextFile, read_text
from swe_env.tools.view import near

_LINES = 300
_LARGE = 1 << 20
_PYTHON = (".py", ".pyi")


@tool(samples=[{}])
def outline(ctx: ToolContext, path: str = "") -> str:
    """List the classes and functions of a Python file with their first and last lines.

    Of a folder: those at the top of each Python file below it.

    Args:
        path: File or folder, relative to the repository's root; empty for the root.
    """
    files = ctx.sandbox.files
    path = inside(ctx, path)
    entry = files.stat(path)
    if entry is None:
        raise ToolError(f"there is no file or folder {path!r}.{near(files, path)}")
    if entry.kind == "dir":
        return _folder(files, path)
    found = read_text(files, path)
    return listing(found.text) or (
        f"{path} has no classes or functions"
        + ("." if path.endswith(_PYTHON) else ", or is no Python file that parses.")
    )


def _folder(files: Files, path: str) -> str:
    lines: list[str] = []
    left_out = 0
    for name, entry in visible(files, path):
        if not name.endswith(_PYTHON) or entry.size > _LARGE:
            continue
        if len(lines) >= _LINES:
            left_out += 1
            continue
        try:
            found = symbols(TextFile.decode(files.read(name)).text)
        except ToolError:
            continue  # gone since it was listed
        tops = [s for s in found if not s.depth]
        lines.append(name)
        lines += [f"{s.first:6d}-{s.last:<6d}\t{s.kind} {s.name}" for s in tops]
    if not lines:
        return f"There is no Python file below {path or 'the root'}."
    if left_out:
        lines.append(f"[... {left_out} more files: outline a folder further down ...]")
    return "\n".join(lines)
