"""R2E's `file_editor`: view, create, str_replace, insert, undo_edit, with its result lines."""

# ruff: noqa: D417 - `ctx` is not the model's to give, so the schema must not name it

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Literal

from swe_env.errors import ToolError
from swe_env.syntax import parse
from swe_env.tools.base import ToolContext, ToolResult, inside, tool
from swe_env.tools.changes import AROUND, span, take_back, write
from swe_env.tools.edit_lines import replaced
from swe_env.tools.matching import replace
from swe_env.tools.r2e import executed
from swe_env.tools.text import TextFile, is_binary, numbered, printable, read_text
from swe_env.tools.view import near

Command = Literal["view", "create", "str_replace", "insert", "undo_edit"]
_LONGEST = 10_000
"""Characters of an answer."""
_CONDENSED = 110
"""Lines of a Python file beyond which it is condensed unless a range is asked for."""
_ELIDED = 4
"""Lines of a function's body from which on it is left out of a condensed view."""
_ECHO = 400


@tool(
    register=False,
    samples=[{"command": "view", "path": "."}],
    also=("str_replace_editor",),
    aliases={"enable_linting": "", "python_only": ""},
)
def file_editor(
    ctx: ToolContext,
    command: Command,
    path: str,
    file_text: str | None = None,
    old_str: str | None = None,
    new_str: str | None = None,
    insert_line: int | None = None,
    view_range: list[int] | None = None,
    concise: bool | None = None,
) -> ToolResult:
    """View, create and edit files. An edit that stops a Python file from parsing is refused.

    Args:
        command: What to do.
        path: File or folder, absolute (/testbed/file.py) or relative to the repository's root.
        file_text: Content of the new file, for create; an existing file is never overwritten.
        old_str: Lines to replace, copied exactly and found once in the file, for str_replace.
        new_str: What stands there instead, for str_replace; the new lines, for insert.
        insert_line: Line after which to insert, 0 for the beginning, for insert.
        view_range: First and last line, for view; -1 as last means the end.
        concise: Whether view leaves out the bodies of long functions; without it, of long Python
            files only.
    """
    place = inside(ctx, path)
    try:
        entry = ctx.sandbox.files.stat(place)
        if command == "create":
            text = _create(ctx, path, place, file_text, exists=entry is not None)
        elif command == "undo_edit":
            text = _undo(ctx, path, place)
        elif entry is None:
            hint = near(ctx.sandbox.files, place)
            raise ToolError(f"The path '{path}' does not exist.{hint}")
        elif command == "view":
            text = _view(ctx, path, place, entry.kind == "dir", view_range, concise)
        elif entry.kind == "dir":
            raise ToolError(
                f"The path '{path}' is a directory. Only 'view' can be used on directories."
            )
        elif command == "str_replace":
            text = _str_replace(ctx, path, place, old_str, new_str or "")
        else:
            text = _insert(ctx, path, place, insert_line, new_str)
    except ToolError as error:
        return executed("file_editor", f"ERROR: {error}", 1)
    return executed("file_editor", text)


def _view(
    ctx: ToolContext,
    path: str,
    place: str,
    folder: bool,
    view_range: list[int] | None,
    concise: bool | None,
) -> str:
    if folder:
        head = f"Here's the files and directories up to 2 levels deep in {path}, excluding hidden:"
        return _clipped(ctx, head, list(_tree(ctx, path.rstrip("/") or path, place, 2)))
    found = read_text(ctx.sandbox.files, place)
    lines = list(enumerate(found.lines, 1))
    python = place.endswith((".py", ".pyi"))
    if view_range:
        first, last = _range(view_range, len(lines))
        lines = lines[first - 1 : last]
    elif (
        python
        and (concise or (concise is None and len(lines) > _CONDENSED))
        and (condensed := _condense(found))
    ):
        head = (
            f"Here is a condensed view for file: {path}; "
            "[Note: view_range shows the lines that are left out here.]"
        )
        return _clipped(ctx, head, _margined(condensed))
    head = f"Here's the result of running `cat -n` on the file: {path}:"
    return _clipped(ctx, head, _margined(lines))


def _margined(lines: list[tuple[int, str]]) -> list[str]:
    return [f"{number:6d} {line}" for number, line in lines]


def _tree(ctx: ToolContext, path: str, place: str, depth: int) -> Iterator[str]:
    yield path
    if not depth:
        return
    for entry in ctx.sandbox.files.list(place):
        if entry.name.startswith(".") or entry.name == "__pycache__":
            continue
        name = f"{path}/{entry.name}"
        below = f"{place}/{entry.name}" if place else entry.name
        if entry.kind == "dir":
            yield from _tree(ctx, name, below, depth - 1)
        else:
            yield name


def _range(view_range: list[int], count: int) -> tuple[int, int]:
    first, last = view_range if len(view_range) == 2 else (0, 0)
    if not 1 <= first <= max(count, 1):
        raise ToolError(f"Invalid view_range {view_range}: start line must be in [1, {count}].")
    if last != -1 and last < first:
        raise ToolError(f"Invalid view_range {view_range}: end must be >= start, or -1.")
    return first, count if last == -1 else min(last, count)


def _clipped(ctx: ToolContext, head: str, lines: list[str]) -> str:
    room = min(_LONGEST, ctx.output_limit - 400)
    size = 0
    for place, line in enumerate(lines):
        size += len(line) + 1
        if size > room:
            note = (
                f"<response clipped><NOTE>{place} of {len(lines)} lines are shown: give view_range "
                "for others, or search for the ones that matter first.</NOTE>"
            )
            rest = [] if place else [lines[0][:room]]
            return "\n".join([head, *lines[:place], *rest, note])
    return printable("\n".join([head, *lines]))


def _condense(found: TextFile) -> list[tuple[int, str]] | None:
    """Numbered lines without the bodies of long functions; None when it does not parse."""
    try:
        tree = parse(found.text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    kept: list[tuple[int, str]] = []
    lines, place = found.lines, 1
    for first, last in _bodies(tree):
        if first < place:
            continue
        kept += enumerate(lines[place - 1 : first - 1], place)
        kept.append((first, f"... eliding lines {first}-{last} ..."))
        place = last + 1
    return kept + list(enumerate(lines[place - 1 :], place))


def _bodies(tree: ast.AST) -> list[tuple[int, int]]:
    """First and last lines of the bodies to leave out, in order, those around others first."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            start = node.body[0]
            marks = getattr(start, "decorator_list", [])
            first = min([start.lineno, *(mark.lineno for mark in marks)])
            last = node.end_lineno or first
            if last - first + 1 >= _ELIDED and first > node.lineno:
                found.append((first, last))
    return sorted(found, key=lambda lines: (lines[0], -lines[1]))


def _create(ctx: ToolContext, path: str, place: str, text: str | None, exists: bool) -> str:
    if exists:
        raise ToolError(f"File already exists at: {path}. Cannot overwrite with 'create'.")
    if text is None:
        raise ToolError("Cannot create file without 'file_text' parameter.")
    new = text.encode("utf-8", "surrogateescape")
    _write(ctx, place, new, None)
    lines = numbered(TextFile.decode(new).lines).split("\n")
    return f"File created at {path}. " + _clipped(ctx, _shown(path), lines)


def _str_replace(ctx: ToolContext, path: str, place: str, old: str | None, new: str) -> str:
    if not old:
        raise ToolError("Missing required parameter 'old_str' for 'str_replace'.")
    data, found = _read(ctx, place)
    try:
        made = replace(found, path, old, new)
    except ToolError as error:
        what = old if len(old) <= _ECHO else f"{old[:_ECHO]}..."
        several = found.text.count(old) > 1
        said = (
            f"Multiple occurrences of '{what}' found in {path}."
            if several
            else f"No occurrences of '{what}' found in {path} for replacement."
        )
        raise ToolError(f"{said} That is: {error}") from error
    _write(ctx, place, TextFile(made.text, found.bom).encode(), data)
    return _edited(path, found, made.text, f"a snippet of {path}", made.said)


def _insert(ctx: ToolContext, path: str, place: str, line: int | None, new: str | None) -> str:
    if line is None or new is None:
        missing = "insert_line" if line is None else "new_str"
        raise ToolError(f"Missing required parameter '{missing}' for 'insert'.")
    data, found = _read(ctx, place)
    count = len(found.pieces)
    if not 0 <= line <= count:
        raise ToolError(f"Invalid insert_line {line}. Must be in [0, {count}].")
    text = replaced(found, line + 1, line, new or "\n")
    _write(ctx, place, TextFile(text, found.bom).encode(), data)
    return _edited(path, found, text, "a snippet of the edited file", "")


def _undo(ctx: ToolContext, path: str, place: str) -> str:
    take_back(ctx, place)
    head = f"Last edit to {path} undone successfully. "
    if ctx.sandbox.files.stat(place) is None:
        return f"{head}The file is gone again: that edit had created it."
    lines = numbered(read_text(ctx.sandbox.files, place).lines).split("\n")
    return head + _clipped(ctx, _shown(path), lines)


def _read(ctx: ToolContext, place: str) -> tuple[bytes, TextFile]:
    data = ctx.sandbox.files.read(place)
    if is_binary(data):
        raise ToolError(f"{place} is a binary file: it cannot be edited as text.")
    return data, TextFile.decode(data)


def _write(ctx: ToolContext, place: str, new: bytes, old: bytes | None) -> None:
    try:
        write(ctx, place, new, old)
    except ToolError as error:
        if "no longer parse" not in str(error):
            raise
        said = "Your proposed edit has introduced new syntax error(s)."
        raise ToolError(f"{said}\nERRORS:\n{error}") from error


def _shown(what: str) -> str:
    return f"Here's the result of running `cat -n` on {what}:"


def _edited(path: str, found: TextFile, text: str, what: str, said: str) -> str:
    after = TextFile(text).lines
    first, last = span(found.lines, after, AROUND + 1)
    snippet = numbered(after[first:last], first + 1)
    head = f"The file {path} has been edited. {_shown(what)}"
    return "\n".join(part for part in (head, snippet, said) if part)
