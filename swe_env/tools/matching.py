"""Finds the place an edit means: exactly, else with white space at line starts left aside."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from swe_env.errors import ToolError
from swe_env.tools.changes import nearest
from swe_env.tools.indentation import Ambiguous, reindent, step
from swe_env.tools.text import TextFile, numbered, split

_LISTED = 10


@dataclass(frozen=True, slots=True)
class Replacement:
    """A file's new text, and what had to be bent to get there."""

    text: str
    said: str = ""


def replace(found: TextFile, path: str, old: str, new: str) -> Replacement:
    """Replace the one place in the file that `old` names.

    Raises:
        ToolError: there is no such place, or there are several; says where.
    """
    old, new = old.replace("\r\n", "\n"), new.replace("\r\n", "\n")
    places = _passages(found.text, old)
    start, stop = places[0] if len(places) == 1 else (0, 0)
    # One whose lines end in different ways is left to `_loosely`: each line keeps its own end.
    if start < stop and found.text[start:stop] in (old, _crlf(old)):
        fresh = _crlf(new) if _newline_at(found, start) == "\r\n" else new
        return Replacement(found.text[:start] + fresh + found.text[stop:])
    if len(places) > 1:
        lines = _line_numbers(found.text, [place for place, _ in places])
        raise ToolError(
            f"old_str occurs {len(places)} times in {path}, at lines {lines}: add the lines "
            "around it until it names one place."
        )
    return _loosely(found, path, old, new)


def _crlf(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\n", "\r\n")


def _newline_at(found: TextFile, place: int) -> str:
    """How the line ends that holds this place, or in a last line without an end, the one before."""
    end = found.text.find("\n", place)
    end = end if end >= 0 else found.text.rfind("\n", 0, place)
    return "\r\n" if end > 0 and found.text[end - 1] == "\r" else "\n"


def _passages(text: str, part: str) -> list[tuple[int, int]]:
    """Where `part` stands, start and stop, whichever way the lines in it end."""
    shown = text.replace("\r\n", "\n")
    at = _places(shown, part)
    if len(shown) == len(text):
        return [(start, start + len(part)) for start in at]
    longer = [place - number for number, place in enumerate(_places(text, "\r\n"))]
    return [
        (start + bisect_left(longer, start), stop + bisect_left(longer, stop))
        for start, stop in ((start, start + len(part)) for start in at)
    ]


def _places(text: str, part: str) -> list[int]:
    places, start = [], text.find(part)
    while start >= 0:
        places.append(start)
        start = text.find(part, start + 1)
    return places


def _line_numbers(text: str, places: list[int]) -> str:
    ends = [index for index, char in enumerate(text) if char == "\n"]
    numbers = [str(bisect_right(ends, place - 1) + 1) for place in places[:_LISTED]]
    return ", ".join(numbers) + (", …" if len(places) > _LISTED else "")


def _loosely(found: TextFile, path: str, old: str, new: str) -> Replacement:
    """The place where only white space around the lines differs, re-indented like the file."""
    lines = found.pieces
    wanted = [line.strip() for line in split(old)]
    while wanted and not wanted[-1]:
        wanted.pop()
    while wanted and not wanted[0]:
        wanted.pop(0)
    stripped = [line.strip() for line in lines]
    size = len(wanted)
    starts = [
        index
        for index in range(len(lines) - size + 1)
        if size and stripped[index] == wanted[0] and stripped[index : index + size] == wanted
    ]
    if len(starts) != 1:
        raise ToolError(_not_found(found, path, old, [start + 1 for start in starts]))
    start = starts[0]
    replaced = lines[start : start + size]
    written = _trimmed(split(old))
    ends = [_end(line) for line in replaced]
    actual = [line.removesuffix(end) for line, end in zip(replaced, ends, strict=True)]
    try:
        fresh = reindent(_trimmed(split(new)), written, actual, step(lines))
    except Ambiguous as error:
        raise ToolError(
            f"old_str is not in {path} exactly: lines that it indents alike (by {error}) stand at "
            "different depths in the file. Copy them as they are there:\n"
            f"{numbered(actual, start + 1)}"
        ) from None
    body = _joined(fresh, ends, found.newline)
    text = "".join(lines[:start]) + body + "".join(lines[start + size :])
    if [line.rstrip() for line in written] == [line.rstrip() for line in actual]:
        return Replacement(text, "Only white space at line ends differed from old_str.")
    return Replacement(text, "Only white space differed from old_str; new_str was re-indented.")


def _trimmed(lines: list[str]) -> list[str]:
    """Without blank lines at the beginning and the end."""
    filled = [place for place, line in enumerate(lines) if line.strip()]
    return lines[filled[0] : filled[-1] + 1] if filled else []


def _end(line: str) -> str:
    return "\r\n" if line.endswith("\r\n") else "\n" if line.endswith("\n") else ""


def _joined(fresh: Sequence[tuple[str, int]], ends: list[str], newline: str) -> str:
    """The lines, each with the end of the line that it stands for or follows."""
    text = "".join(line + (ends[place] or newline) for line, place in fresh)
    return text if ends[-1] else text.removesuffix(_end(text))


def _not_found(found: TextFile, path: str, old: str, starts: list[int]) -> str:
    if starts:
        listed = ", ".join(map(str, starts[:_LISTED]))
        return (
            f"old_str is not in {path} exactly; with other white space it occurs at lines "
            f"{listed}: add the lines around it until it names one place."
        )
    near = nearest(found.lines, old)
    hint = f" The nearest lines are:\n{near}" if near else f" View {path} and copy the lines."
    return f"old_str is not in {path}.{hint}"
