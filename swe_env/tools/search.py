"""`search`: lines that contain a text, over all files that git would not ignore."""

# ruff: noqa: D417 - `ctx` is not the model's to give, so the schema must not name it

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from swe_env.errors import ToolError
from swe_env.tools.base import ToolContext, tool
from swe_env.tools.ignore import visible
from swe_env.tools.text import is_binary

_SHOWN = 100
_LONG = 200
_LARGE = 4 << 20
"""Bytes of a file beyond which it is not searched."""


@tool(samples=({"query": "def "}, {"query": "import"}))
def search(ctx: ToolContext, query: str, path: str = "", regex: bool = False) -> str:
    """Find the lines that contain a text, in all files below a folder or in one file.

    Args:
        query: The text to find, upper and lower case as they are.
        path: Folder or file to search, relative to the repository's root; empty for all.
        regex: Take the query as a Python regular expression.
    """
    if not query:
        raise ToolError("query is empty: say what to find.")
    pattern = _pattern(query, regex)
    path = posixpath.normpath(path) if path else ""
    path = "" if path == "." else path
    shown: list[str] = []
    total = found_in = 0
    for name, data in _contents(ctx, path):
        hits = list(_hits(data, pattern))
        if not hits:
            continue
        found_in += 1
        total += len(hits)
        for number, line in hits[: _SHOWN - len(shown)]:
            text = line.decode("utf-8", "replace").strip("\r\n")
            text = text if len(text) <= _LONG else f"{text[:_LONG]}[... {len(text) - _LONG} more]"
            shown.append(f"{name}:{number}: {text}")
    if not total:
        return f"No line contains {query!r}{f' in {path}' if path else ''}."
    if total > len(shown):
        shown.append(f"[... {total - len(shown)} more lines left out, {found_in} files in all ...]")
    return "\n".join(shown)


def _pattern(query: str, regex: bool) -> re.Pattern[bytes]:
    raw = query.encode("utf-8", "surrogateescape")
    try:
        return re.compile(raw if regex else re.escape(raw), re.MULTILINE)
    except re.error as error:
        raise ToolError(f"query is no regular expression: {error}.") from error


def _contents(ctx: ToolContext, path: str) -> Iterator[tuple[str, bytes]]:
    files = ctx.sandbox.files
    entry = files.stat(path)
    if entry is None:
        raise ToolError(f"there is no file or folder {path!r} to search.")
    if entry.kind == "dir":
        names = [(name, found.size) for name, found in visible(files, path)]
    else:
        names = [(path, 0)]
    for name, size in names:
        if size > _LARGE:
            continue
        try:
            data = files.read(name)
        except ToolError:
            continue
        if not is_binary(data):
            yield name, data


def _hits(data: bytes, pattern: re.Pattern[bytes]) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of each line with a match, once."""
    number, counted, position = 1, 0, 0
    while (match := pattern.search(data, position)) is not None:
        start = data.rfind(b"\n", 0, match.start()) + 1
        end = data.find(b"\n", match.start())
        end = len(data) if end < 0 else end
        number += data.count(b"\n", counted, start)
        counted = start
        yield number, data[start:end]
        position = end + 1
        if position > len(data):
            return
