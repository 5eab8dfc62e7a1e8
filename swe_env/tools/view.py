"""`view`: a file with line numbers, a part of it by range or by name, or a folder."""

# ruff: noqa: D417 - `ctx` is not the model's to give, so the schema must not name it

from __future__ import annotations

import difflib
from itertools import islice

from swe_env.errors import ToolError
from swe_env.sandbox.base import Files
from swe_env.tools.base import ToolContext, tool
from swe_env.tools.outline import Symbol, outline, symbols
from swe_env.tools.text import TextFile, numbered, read_text

_HEAD = 100
"""Lines shown of a file too long to show whole, before its outline."""
_WHOLE = 400
"""Lines up to which a file is shown whole."""
_ENTRIES = 300
_DEPTH = 2
_LOOKED_AT = 5000
"""Entries among which a missing path's likeness is looked for."""


@tool(samples=({}, {"path": "."}))
def view(
    ctx: ToolContext,
    path: str = "",
    view_range: list[int] | None = None,
    symbol: str | None = None,
) -> str:
    """Show a file with line numbers, one function or class of it, or what is in a folder.

    Args:
        path: File or folder, relative to the repository's root; empty for the root.
        view_range: First and last line to show, for example [1, 40]; -1 as last means the end.
        symbol: Function or class to show instead of lines, for example "parse" or "Parser.feed".
    """
    files = ctx.sandbox.files
    entry = files.stat(path)
    if entry is None:
        raise ToolError(f"there is no file or folder {path!r}.{near(files, path)}")
    if entry.kind == "dir":
        if symbol or view_range:
            raise ToolError(f"{path or 'the root'} is a folder: give the path of a file.")
        return _folder(files, path)
    found = read_text(files, path)
    lines = found.lines
    if symbol:
        return _symbol(found, path, symbol)
    if view_range is not None:
        first, last = _range(view_range, len(lines), path)
        return numbered(lines[first - 1 : last], first)
    if not lines:
        return f"{path} is empty."
    if len(lines) <= _WHOLE and len(found.text) <= ctx.output_limit - 8 * len(lines):
        return numbered(lines)
    return _beginning(found, lines, path, ctx.output_limit)


def _range(view_range: list[int], count: int, path: str) -> tuple[int, int]:
    if len(view_range) != 2:
        raise ToolError("view_range takes two numbers, first and last line, for example [1, 40].")
    first, last = view_range
    last = count if last == -1 else min(last, count)
    if first < 1 or first > count or last < first:
        raise ToolError(f"view_range {view_range} is outside {path}, which has {count} lines.")
    return first, last


def _symbol(found: TextFile, path: str, symbol: str) -> str:
    every = symbols(found.text)
    if not every:
        raise ToolError(f"{path} has no functions or classes to find {symbol!r} in.")
    matches = [s for s in every if s.name == symbol]
    matches = matches or [s for s in every if s.name.endswith(f".{symbol}")]
    if not matches:
        near = difflib.get_close_matches(symbol, [s.name for s in every], n=3, cutoff=0.5)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise ToolError(f"{path} has no function or class {symbol!r}.{hint}")
    return "\n\n".join(_lines(found, match) for match in matches)


def _lines(found: TextFile, symbol: Symbol) -> str:
    return numbered(found.lines[symbol.first - 1 : symbol.last], symbol.first)


def _beginning(found: TextFile, lines: list[str], path: str, limit: int) -> str:
    names = outline(found.text) if path.endswith((".py", ".pyi")) else ""
    room = max(limit - len(names) - 200, limit // 3)
    shown, size = 0, 0
    for line in lines[:_HEAD]:
        size += len(line) + 8
        if size > room and shown:
            break
        shown += 1
    parts = [
        numbered(lines[:shown]),
        f"[{path} has {len(lines)} lines, {shown} shown: use view_range or symbol for the rest.]",
    ]
    return "\n".join([*parts, "[Outline, first-last line]", names] if names else parts)


def _folder(files: Files, path: str) -> str:
    listed: list[str] = []
    _list(files, path.rstrip("/"), 0, listed)
    if not listed:
        return f"{path or 'The root'} is empty (hidden entries are not shown)."
    if len(listed) > _ENTRIES:
        listed[_ENTRIES:] = [f"[... {len(listed) - _ENTRIES} more entries ...]"]
    return "\n".join(listed)


def _list(files: Files, path: str, depth: int, listed: list[str]) -> None:
    for entry in files.list(path):
        if entry.name.startswith(".") or entry.name == "__pycache__":
            continue
        listed.append("  " * depth + entry.name + ("/" if entry.kind == "dir" else ""))
        if entry.kind == "dir" and depth + 1 < _DEPTH:
            _list(files, f"{path}/{entry.name}" if path else entry.name, depth + 1, listed)


def near(files: Files, path: str) -> str:
    """A hint: files of the same name elsewhere, or of a similar name beside it."""
    name = path.rstrip("/").rpartition("/")[2]
    every = [found for found, entry in islice(files.walk(), _LOOKED_AT) if entry.kind == "file"]
    same = [found for found in every if found.rpartition("/")[2] == name]
    close = same or difflib.get_close_matches(path, every, n=3, cutoff=0.7)
    return f" Did you mean {', '.join(sorted(close)[:3])}?" if close else ""
