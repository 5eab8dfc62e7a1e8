"""Finds where a diff's hunks belong by their lines, and writes the diff as git wants it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from swe_env.errors import ToolError
from swe_env.grading.patches import patch_paths
from swe_env.tools.changes import AROUND, common, nearest
from swe_env.tools.text import TextFile

_HEADER = re.compile(r"^@@(?: -(\d+)(?:,(\d+))? \+(\d+)(?:,\d+)? @@)?(.*)$")
_NO_LINES = re.compile(r"old mode |new mode |(new file|deleted file) mode 120000|index .* 120000$")
"""Headers of what is neither undone nor seen by comparing bytes."""
_PLAIN = ("--- ", "+++ ", "diff ", "index ")
_LISTED = 10
_BOM = "\ufeff"


@dataclass(slots=True)
class Hunk:
    """One hunk as it was written."""

    number: int | None
    """The line at which it says that its old lines begin; None when it does not say."""
    count: int
    """How many old lines its header tells of."""
    new_number: int
    heading: str
    body: list[str] = field(default_factory=list)
    """Its lines with their marks; never an empty one."""

    @property
    def old(self) -> list[str]:
        """The lines that must be there."""
        return [line[1:].removesuffix("\r") for line in self.body if line[0] in " -"]

    def unended(self, marks: str) -> bool:
        """Whether the last line with one of these marks has no line end in its file."""
        last = max((n for n, line in enumerate(self.body) if line[0] in marks), default=-1)
        return 0 <= last < len(self.body) - 1 and self.body[last + 1].startswith("\\")


def mend(diff: str, texts: Mapping[str, TextFile]) -> str:
    """A diff as a model writes it, with its hunks where their lines are in the files.

    Line numbers, counts and line ends become what git takes, and the lines around the changes are
    the file's own. What changes no text of these files (a new file, a binary one) only gets its
    lines counted.

    Args:
        diff: the diff.
        texts: the files as they are, by their paths.

    Raises:
        ToolError: a hunk's lines are not there, or at several places; says what is.
    """
    now = dict(texts)
    mended: list[str] = []
    for header, hunks in _sections(diff):
        path = _path(header, now)
        if any(map(_NO_LINES.match, header)):
            raise ToolError(
                "the diff changes a file's mode or a symbolic link, and apply_diff changes lines "
                "only: leave that part out, and do it with a command (chmod, ln -s)."
            )
        if not hunks or path is None:
            mended += [*header, *(line for hunk in hunks for line in _counted(hunk))]
            continue
        found = now[path]
        after = _applied(found, path, hunks)
        now[path] = TextFile("".join(after), found.bom)
        body = _written(_marked(found.pieces, found.bom), _marked(after, found.bom))
        if body or any(line and not line.startswith(_PLAIN) for line in header):
            mended += [*_named(header, path), *body]
    if not any(line.startswith(("--- ", "diff ")) for line in mended):
        raise ToolError("nothing to do: the diff leaves every file as it is.")
    return "\n".join([*mended, ""])


def _sections(diff: str) -> list[tuple[list[str], list[Hunk]]]:
    """What concerns one file each: the lines before its hunks, and these."""
    lines = diff.split("\n")
    sections: list[tuple[list[str], list[Hunk]]] = [([], [])]
    place = 0
    while place < len(lines):
        header = _HEADER.match(lines[place])
        if header is None:
            if sections[-1][1]:
                sections.append(([], []))
            sections[-1][0].append(lines[place].removesuffix("\r"))
            place += 1
            continue
        number, count, second, heading = header.groups()
        heading = heading.removesuffix("\r")
        hunk = Hunk(int(number) if number else None, int(count or 1), int(second or 1), heading)
        place += 1
        while place < len(lines) and not _ends_hunk(lines, place):
            hunk.body.append(lines[place])
            place += 1
        while hunk.body and not hunk.body[-1].strip("\r"):
            hunk.body.pop()  # blank lines after the hunk
        hunk.body = [line if line.strip("\r") else " " for line in hunk.body]
        sections[-1][1].append(hunk)
    return sections


def _ends_hunk(lines: list[str], place: int) -> bool:
    line = lines[place]
    if line.startswith("--- ") and place + 1 < len(lines):
        return lines[place + 1].startswith("+++ ")
    return bool(line) and line[0] not in " +-\\\r"


def _path(header: list[str], texts: Mapping[str, TextFile]) -> str | None:
    """The file that the hunks change, when it is one of `texts`."""
    old = [line for line in header if line.startswith("--- ")][-1:]
    if not old or not any(line.startswith("+++ ") for line in header):
        return None
    return max((path for path in patch_paths(old[0]) if path in texts), key=len, default=None)


def _named(header: list[str], path: str) -> list[str]:
    """The lines before the hunks, with the ``a/`` and ``b/`` that git strips."""
    if any(line.startswith("diff ") for line in header):
        return header
    marked = {f"--- {path}": f"--- a/{path}", f"+++ {path}": f"+++ b/{path}"}
    return [marked.get(line, line) for line in header]


def _marked(pieces: list[str], bom: bool) -> list[str]:
    return [_BOM + pieces[0], *pieces[1:]] if bom and pieces else pieces


def _counted(hunk: Hunk) -> list[str]:
    old = sum(line[0] in " -" for line in hunk.body)
    new = sum(line[0] in " +" for line in hunk.body)
    first = hunk.number or 0
    return [f"@@ -{first},{old} +{hunk.new_number},{new} @@{hunk.heading}", *hunk.body]


def _applied(found: TextFile, path: str, hunks: list[Hunk]) -> list[str]:
    """The file's lines, with their ends, after the hunks."""
    pieces, lines = found.pieces, found.lines
    ended = not pieces or pieces[-1].endswith("\n")
    fresh: list[str] = []
    done = shift = 0
    for hunk in hunks:
        start = _located(hunk, lines, done, shift, path)
        shift = start + 1 - hunk.number if hunk.number and hunk.old else shift
        fresh += pieces[done:start]
        done = start + len(hunk.old)
        near = (pieces[:start] or [found.newline])[-1]
        fresh += _replaced(hunk, pieces[start:done], near, as_written="\n" not in found.text)
        if done == len(pieces):
            ended = not hunk.unended(" +") and (ended or hunk.unended(" -"))
    fresh += pieces[done:]
    fresh = [piece if piece.endswith("\n") else piece + found.newline for piece in fresh]
    if fresh and not ended:
        fresh[-1] = fresh[-1].removesuffix("\n").removesuffix("\r")
    return fresh


def _replaced(hunk: Hunk, there: list[str], near: str, *, as_written: bool) -> list[str]:
    """The lines of the hunk afterwards: the file's own, and new ones that end as these do.

    In a hunk with line ends of both kinds they are what the diff is about, and taken as written;
    so they are (`as_written`) where the file has no line end to go by.
    """
    kinds = {line.endswith("\r") for line in hunk.body if line[0] in " +-"}
    explicit = as_written or len(kinds) > 1
    fresh: list[str] = []
    removed: list[str] = []
    left = iter(there)
    near = there[0] if there else near
    for line in hunk.body:
        if line[0] == " ":
            near = next(left)
            removed = []
            fresh.append(near)
        elif line[0] == "-":
            removed.append(next(left))
        elif line[0] == "+":
            near = removed.pop(0) if removed else near
            crlf = line.endswith("\r") if explicit else near.endswith("\r\n")
            fresh.append(line[1:].removesuffix("\r") + ("\r\n" if crlf else "\n"))
    return fresh


def _located(hunk: Hunk, lines: list[str], done: int, shift: int, path: str) -> int:
    """Where in the file (from 0, not before `done`) the hunk's old lines begin.

    Exactly where it says, else where they are unique, else at the nearest of several places when
    no other is nearly as near.
    """
    old, number = hunk.old, hunk.number
    if not old:
        if number is None or hunk.count or not done <= number <= len(lines):
            raise ToolError(
                f"a hunk for {path} only adds lines and does not say where: give it lines of the "
                "file around them."
            )
        return number
    places = _places(lines, old, done) or _places(
        [line.rstrip() for line in lines], [line.rstrip() for line in old], done
    )
    if not places:
        raise ToolError(_missing(hunk, lines, path, above=bool(_places(lines[:done], old, 0))))
    if number is not None and number - 1 in places:
        return number - 1
    if len(places) == 1:
        return places[0]
    if number is not None:
        wanted = number - 1 + shift
        first, second = sorted(places, key=lambda place: abs(place - wanted))[:2]
        if 3 * abs(first - wanted) < abs(second - wanted):
            return first
    listed = ", ".join(str(place + 1) for place in places[:_LISTED])
    more = ", …" if len(places) > _LISTED else ""
    raise ToolError(
        f"a hunk's lines occur {len(places)} times in {path}, at lines {listed}{more}, and none is "
        f"where it says{f' (line {number})' if number else ''}: give the right line or more of "
        "the lines around."
    )


def _places(lines: list[str], old: list[str], done: int) -> list[int]:
    size = len(old)
    return [
        place
        for place in range(done, len(lines) - size + 1)
        if lines[place] == old[0] and lines[place : place + size] == old
    ]


def _missing(hunk: Hunk, lines: list[str], path: str, above: bool) -> str:
    at = f" at line {hunk.number}" if hunk.number else ""
    if above:
        return (
            f"the diff does not apply: the lines of its hunk{at} stand above those of the hunk "
            f"before it in {path}: put the hunks in the file's order."
        )
    near = nearest(lines, "\n".join(hunk.old))
    hint = f" The nearest lines are:\n{near}" if near else f" View {path} and copy the lines."
    return f"the diff does not apply: the lines of its hunk{at} are not in {path}.{hint}"


def _written(before: list[str], after: list[str]) -> list[str]:
    """One hunk that makes the one of the other, with the file's lines around to hold it there.

    Git takes a hunk that has none after it to stand at the file's end: here it does.
    """
    if before == after:
        return []
    head = common(before, after)
    tail = common(before[head:][::-1], after[head:][::-1])
    first, around = max(head - AROUND, 0), min(tail, AROUND)
    old_end, new_end = len(before) - tail, len(after) - tail
    marked = [(" ", line) for line in before[first:head]]
    marked += [("-", line) for line in before[head:old_end]]
    marked += [("+", line) for line in after[head:new_end]]
    marked += [(" ", line) for line in before[old_end : old_end + around]]
    old, new = old_end + around - first, new_end + around - first
    body = [f"@@ -{first + bool(old)},{old} +{first + bool(new)},{new} @@"]
    for mark, line in marked:
        body.append(mark + line.removesuffix("\n"))
        if not line.endswith("\n"):
            body.append("\\ No newline at end of file")
    return body
