"""`search`: lines that contain a text, over all files that git would not ignore."""

# ruff: noqa: D417 - `ctx` is not the model's to give, so the schema must not name it

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

from swe_env.errors import ToolError
from swe_env.tools.base import ToolContext, inside, tool
from swe_env.tools.contents import contents, text_or_none

_SECONDS = 10.0
"""Longest that a regular expression may search, all files together."""
_SHOWN = 100
_AROUND = 10
_LONG = 200

Find = Callable[[bytes, int], int]
"""(data, from where) → where the first match begins, or -1."""


@tool(samples=({"query": "def "}, {"query": "import"}))
def search(
    ctx: ToolContext, query: str, path: str = "", regex: bool = False, context: int = 0
) -> str:
    """Find the lines that contain a text, in all files below a folder or in one file.

    Args:
        query: The text to find, upper and lower case as they are.
        path: Folder or file to search, relative to the repository's root; empty for all.
        regex: Take the query as a Python regular expression.
        context: Lines to show before and after each, up to 10.
    """
    if not query:
        raise ToolError("query is empty: say what to find.")
    find = expression(query) if regex else literal(query)
    whole = None if regex or "\n" in query else _whole_lines(query)
    path = inside(ctx, path)
    shown: list[str] = []
    listed = total = found_in = 0
    around = min(max(context, 0), _AROUND)
    for name, data in contents_of(ctx, path):
        if find(data, 0) < 0:
            continue
        found_in += 1
        if listed == _SHOWN:
            total += len(whole.findall(data)) if whole else _count(data, find)
            continue
        found = list(hits(data, find))
        total += len(found)
        some = found[: _SHOWN - listed]
        listed += len(some)
        if around and some and shown:
            shown.append("--")
        shown += _in_context(name, data, some, around) if around else _lines(name, some)
    if not total:
        return f"No line contains {query!r}{f' in {path}' if path else ''}."
    if total > listed:
        shown.append(f"[... {total - listed} more lines left out, {found_in} files in all ...]")
    return "\n".join(shown)


def _lines(name: str, hits: list[tuple[int, bytes]], mark: str = ":") -> list[str]:
    return [f"{name}{mark}{number}{mark} {_text(line)}" for number, line in hits]


def _in_context(name: str, data: bytes, hits: list[tuple[int, bytes]], around: int) -> list[str]:
    """The lines with those around them, as grep marks them: ``:`` found, ``-`` around."""
    every = data.split(b"\n")
    numbers = {number for number, _ in hits}
    near = {n + step for n in numbers for step in range(-around, around + 1)}
    shown: list[str] = []
    last = 0
    for number in sorted(n for n in near if 0 < n <= len(every)):
        if last and number > last + 1:
            shown.append("--")
        last = number
        shown += _lines(name, [(number, every[number - 1])], ":" if number in numbers else "-")
    return shown


def _text(line: bytes) -> str:
    text = line.decode("utf-8", "replace").strip("\r\n")
    return text if len(text) <= _LONG else f"{text[:_LONG]}[... {len(text) - _LONG} more]"


def literal(query: str) -> Find:
    """Finds a text as it stands."""
    wanted = query.encode("utf-8", "surrogateescape")
    return lambda data, position: data.find(wanted, position)


def _whole_lines(query: str) -> re.Pattern[bytes]:
    """Matches once in each line that contains the text: to count many at the speed of C."""
    return re.compile(re.escape(query.encode("utf-8", "surrogateescape")) + rb"[^\n]*")


def expression(query: str) -> Find:
    """Finds the model's own regular expression, which may be one that never ends.

    Raises:
        ToolError: it is none; when it is used, it took too long.
    """
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


def contents_of(ctx: ToolContext, path: str) -> Iterator[tuple[str, bytes]]:
    """(path, bytes) of the text files to search: a file, or what git would not ignore in a folder.

    Raises:
        ToolError: there is nothing at that path, or nothing with lines (a FIFO, a device).
    """
    files = ctx.sandbox.files
    entry = files.stat(path)
    if entry is None:
        raise ToolError(f"there is no file or folder {path!r} to search.")
    if entry.kind not in ("dir", "file"):
        raise ToolError(f"{path} is no regular file or folder: it cannot be searched.")
    if entry.kind == "dir":
        yield from contents(files, path)
    elif (data := text_or_none(files, path)) is not None:
        yield path, data


def hits(data: bytes, find: Find) -> Iterator[tuple[int, bytes]]:
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


def _count(data: bytes, find: Find) -> int:
    """How many lines have a match: `hits` where only their number matters."""
    count = position = 0
    while (match := find(data, position)) >= 0:
        count += 1
        position = data.find(b"\n", match) + 1
        if not 0 < position <= len(data):
            break
    return count
