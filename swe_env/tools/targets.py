"""Test ids as `run_tests` takes them: read from one text, and what was meant by a wrong one."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Iterable, Sequence

from swe_env.errors import ToolError
from swe_env.sandbox.base import Files
from swe_env.tools.contents import text_or_none
from swe_env.tools.outline import symbols
from swe_env.tools.text import TextFile

_QUOTED = re.compile(r"""(?:"([^"]*)"|'([^']*)')(?=\s|$)""")
_BRACKETED = re.compile(r"\S*?::\S*?\[")
_CLOSED = re.compile(r"\](?=\s|$)")


def words(text: str) -> list[str]:
    """The paths and ids in a text; blanks and quotes within an id's brackets are part of it.

    >>> words("tests/a.py tests/b.py::test_b[x y-1]")
    ['tests/a.py', 'tests/b.py::test_b[x y-1]']

    Raises:
        ToolError: a quotation is not closed.
    """
    if text.lstrip().startswith('["'):  # a list, from a format that has only text
        try:
            return [str(word) for word in json.loads(text)]
        except json.JSONDecodeError:
            pass
    found: list[str] = []
    rest = text.strip()
    while rest:
        if quoted := _QUOTED.match(rest):
            found.append(quoted[1] or quoted[2] or "")
            rest = rest[quoted.end() :].lstrip()
            continue
        opened = _BRACKETED.match(rest)
        end = _id_end(rest, opened.end()) if opened else _word_end(rest)
        found += [rest[:end]] if opened else _plain(rest[:end])
        rest = rest[end:].lstrip()
    return found


def _id_end(text: str, place: int) -> int:
    """Where the id ends whose brackets open before `place`: balanced, else at one that closes."""
    depth = 1
    for end in range(place, len(text)):
        depth += {"[": 1, "]": -1}.get(text[end], 0)
        if depth <= 0 and (end + 1 == len(text) or text[end + 1].isspace()):
            return end + 1
    closed = _CLOSED.search(text, place)
    return closed.end() if closed else place + _word_end(text[place:])


def _word_end(text: str) -> int:
    r"""Where a shell's word ends: a quoted or escaped blank is part of it."""
    word = re.compile(r"""(?:\\.|"[^"]*"|'[^']*'|[^\s])+""", re.DOTALL).match(text)
    return word.end() if word else len(text)


def _plain(word: str) -> list[str]:
    try:
        return shlex.split(word)
    except ValueError as error:
        raise ToolError(f"targets cannot be read: {error}.") from error


def meant(files: Files, wanted: Iterable[str], known: Sequence[str] = ()) -> str:
    """A hint for ids that name no test: one in the same file whose name is near, or empty.

    Args:
        files: the workspace.
        wanted: the targets that were given.
        known: ids that pytest gave in an earlier run.
    """
    for word in wanted:
        path, named, name = word.partition("::")
        data = text_or_none(files, path) if named else None
        if data is None:
            continue
        plain, parameters, _ = name.partition("[")
        names = [symbol.name for symbol in symbols(TextFile.decode(data).text)]
        base = plain.replace("::", ".")
        if base in names:
            if not parameters:
                continue
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
            run_all = f"{path}::{plain} without brackets runs it with all its parameters."
            return f" Did you mean {near[0]}? {run_all}" if near else f" {run_all}"
        inside = [found for found in names if found.endswith(f".{base}")]
        near = inside[:1] or difflib.get_close_matches(base, names, n=1, cutoff=0.6)
        if near:
            return f" Did you mean {path}::{near[0].replace('.', '::')}?"
    return ""
