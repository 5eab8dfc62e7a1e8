"""A gold patch as calls of the `edit` tool: passages of whole lines, each naming one place."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from itertools import groupby, pairwise

from unidiff.errors import UnidiffParseError
from unidiff.patch import Hunk, PatchedFile, PatchSet

from swe_env.syntax import parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One call of `edit`; `old_str` is empty for a new file."""

    path: str
    old_str: str
    new_str: str
    line: int = 1
    """Where the passage begins in the file before the patch."""


@dataclass(frozen=True, slots=True)
class _Change:
    """Adjacent changed lines: old[start:end] (line indices) becomes `new`."""

    start: int
    end: int
    new: tuple[str, ...]


def gold_edits(patch: str, base: dict[str, str]) -> list[Edit] | None:
    """The edits that turn the base files into the patched ones, in order.

    Args:
        patch: unified diff.
        base: path → text of every file the patch changes (new files left out).

    Returns:
        The edits, tried out on `base`; None when exact edits cannot make this patch (renames,
        deletions, modes, binary files, a file that would stop parsing on the way).
    """
    try:
        files = list(PatchSet(patch))
    except UnidiffParseError:
        return None
    edits: list[Edit] = []
    for file in files:
        found = _file_edits(file, base)
        if found is None:
            return None
        edits += found
    return edits or None


def patched_paths(patch: str) -> list[str]:
    """Paths that exist before the patch and that it changes."""
    try:
        files = list(PatchSet(patch))
    except UnidiffParseError:
        return []
    return [f.source_file.removeprefix("a/") for f in files if not f.is_added_file]


def _file_edits(file: PatchedFile, base: dict[str, str]) -> list[Edit] | None:
    header = "".join(file.patch_info or ())
    special = ("old mode", "new file mode 1007", "new file mode 12", "GIT binary patch")
    if file.is_removed_file or file.is_rename or file.is_binary_file:
        return None
    if any(mark in header for mark in special):
        return None
    if file.is_added_file:
        text = _new_text(file)
        return [Edit(path=file.path, old_str="", new_str=text)] if text else None
    old = base.get(file.path)
    if old is None or not _keeps_last_newline(file):
        return None
    lines = old.split("\n")
    if not all(_fits(hunk, lines) for hunk in file):
        return None
    changes = [change for hunk in file for change in _changes(hunk)]
    final = list(lines)
    for change in reversed(changes):
        final[change.start : change.end] = change.new
    wanted = "\n".join(final)
    spans = [changes] if changes else []
    return _try(file.path, old, wanted, [[c] for c in changes]) or _try(
        file.path, old, wanted, spans
    )


def _new_text(file: PatchedFile) -> str:
    """A new file's text; its last newline left out when the patch says so."""
    lines = [line for hunk in file for line in hunk]
    text = "".join(line.value for line in lines if line.is_added)
    return text.removesuffix("\n") if lines and lines[-1].line_type == "\\" else text


def _keeps_last_newline(file: PatchedFile) -> bool:
    """Whether the file ends (or not) in a newline after the patch as before it."""
    lines = [line for hunk in file for line in hunk]
    bare = [a.line_type for a, b in pairwise(lines) if b.line_type == "\\"]
    return bare.count("-") == bare.count("+")


def _fits(hunk: Hunk, lines: list[str]) -> bool:
    """Whether the lines that the hunk expects are where it expects them."""
    expected = [x.value.removesuffix("\n") for x in hunk if x.line_type in (" ", "-", "")]
    first = max(hunk.source_start - 1, 0)
    return lines[first : first + len(expected)] == expected


def _changes(hunk: Hunk) -> list[_Change]:
    """The hunk's groups of adjacent changed lines, against lines split at newlines."""
    changes, position = [], max(hunk.source_start - 1, 0)
    if hunk.source_length == 0:
        position = hunk.source_start
    lines = [line for line in hunk if line.line_type in (" ", "-", "+", "")]
    for same, group in groupby(lines, key=lambda line: line.line_type in (" ", "")):
        run = list(group)
        if same:
            position += len(run)
            continue
        removed = sum(line.is_removed for line in run)
        new = tuple(line.value.removesuffix("\n") for line in run if line.is_added)
        changes.append(_Change(position, position + removed, new))
        position += removed
    return changes


def _try(path: str, old: str, wanted: str, groups: list[list[_Change]]) -> list[Edit] | None:
    """One edit for each group, last group first so that line numbers hold; None if it fails."""
    text, edits = old, []
    for group in reversed(groups):
        edit = _edit(path, text, group)
        if edit is None or not _parses(path, old, new := text.replace(edit.old_str, edit.new_str)):
            return None
        text = new
        edits.append(edit)
    return edits if text == wanted else None


def _edit(path: str, text: str, group: list[_Change]) -> Edit | None:
    """The smallest passage of whole lines around the group that occurs once in the text."""
    lines = text.split("\n")
    first, last = group[0].start, group[-1].end
    new = list(lines)
    for change in reversed(group):
        new[change.start : change.end] = change.new
    grown = len(new) - len(lines)
    before = True
    while True:
        old_str, new_str = "\n".join(lines[first:last]), "\n".join(new[first : last + grown])
        if old_str.strip() and new_str.strip() and _once(text, old_str):
            return Edit(path=path, old_str=old_str, new_str=new_str, line=first + 1)
        if first == 0 and last >= len(lines):
            return None
        if (before and first > 0) or last >= len(lines):
            first -= 1
        else:
            last += 1
        before = not before


def _once(text: str, part: str) -> bool:
    place = text.find(part)
    return place >= 0 and text.find(part, place + 1) < 0


def _parses(path: str, old: str, new: str) -> bool:
    """Whether the `edit` tool accepts the new text: a file that parsed must go on parsing."""
    if not path.endswith(".py"):
        return True
    return not _valid(old) or _valid(new)


def _valid(text: str) -> bool:
    try:
        parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def enclosing(text: str, line: int) -> tuple[str, int, int] | None:
    """(dotted name, first line, last line) of the function or method around a line, if any."""
    try:
        tree = parse(text)
    except (SyntaxError, ValueError):
        return None
    body: list[ast.stmt] = tree.body
    names: list[str] = []
    while True:
        node = next((n for n in body if _first(n) <= line <= (n.end_lineno or 0)), None)
        if isinstance(node, ast.ClassDef):
            names.append(node.name)
            body = node.body
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return ".".join([*names, node.name]), _first(node), node.end_lineno or node.lineno
        else:
            return None


def _first(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return int(min([node.lineno, *(d.lineno for d in decorators)]))
