"""`search`: lines that contain a text, over all files that git would not ignore."""

# ruff: noqa: D417 - `ctx` is not the model's to give, so the schema must not name it

from __future__ import annotations

import posixpath
import re
import time
from collections.abc import Callable, Iterator

from swe_env.errors import ToolError
from swe_env.tools.base import ToolContext, tool
from swe_env.tools.contents import contents, text_or_none

_SECONDS = 10.0
"""Longest that a regular expression may search, all files together."""
_SHOWN = 100
_LONG = 200

_Find = Callable[[bytes, int], int]
"""(data, from where) → where the first match begins, or -1."""


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
    find = _regex(query) if regex else _literal(query)
    whole = None if regex or "\n" in query else _whole_lines(query)
    path = posixpath.normpath(path) if path else ""
    path = "" if path == "." else path
    shown: list[str] = []
    total = found_in = 0
    for name, data in _contents(ctx, path):
        if find(data, 0) < 0:
            continue
        found_in += 1
        if len(shown) == _SHOWN:
            total += len(whole.findall(data)) if whole else _count(data, find)
            continue
        hits = list(_hits(data, find))
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


def _literal(query: str) -> _Find:
    wanted = query.encode("utf-8", "surrogateescape")
    return lambda data, position: data.find(wanted, position)


def _whole_lines(query: str) -> re.Pattern[bytes]:
    """Matches once in each line that contains the text: to count many at the speed of C."""
    return re.compile(re.escape(query.encode("utf-8", "surrogateescape")) + rb"[^\n]*")


def _regex(query: str) -> _Find:
    """The model's own expression, which may be one that never ends."""
    import regex

    try:
        pattern = regex.compile(query.encode("utf-8", "surrogateescape"), regex.MULTILINE)
    except regex.error as error:
        raise ToolError(f"query is no regular expression: {error}.") from error
    deadline = time.monotonic() + _SECONDS

    def find(data: bytes, position: int) -> int:
        left = max(deadline - time.monotonic(), 0.001)
        try:
            # Concurrent: other episodes of this process go on while it searches.
            found = pattern.search(data, position, timeout=left, concurrent=True)
        except TimeoutError as error:
            raise ToolError(
                f"the regular expression took longer than {_SECONDS:g} s: make it simpler, "
                "without nested repetitions."
            ) from error
        return found.start() if found else -1

    return find


def _contents(ctx: ToolContext, path: str) -> Iterator[tuple[str, bytes]]:
    files = ctx.sandbox.files
    entry = files.stat(path)
    if entry is None:
        raise ToolError(f"there is no file or folder {path!r} to search.")
    if entry.kind == "dir":
        yield from contents(files, path)
    elif (data := text_or_none(files, path)) is not None:
        yield path, data


def _hits(data: bytes, find: _Find) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of each line with a match, once."""
    number, counted, position = 1, 0, 0
    while (match := find(data, position)) >= 0:
        start = data.rfind(b"\n", 0, match) + 1
        end = data.find(b"\n", match)
        end = len(data) if end < 0 else end
        number += data.count(b"\n", counted, start)
        counted = start
        yield number, data[start:end]
        position = end + 1
        if position > len(data):
            return


def _count(data: bytes, find: _Find) -> int:
    """How many lines have a match: `_hits` where only their number matters."""
    count = position = 0
    while (match := find(data, position)) >= 0:
        count += 1
        position = data.find(b"\n", match) + 1
        if not 0 < position <= len(data):
            break
    return count
