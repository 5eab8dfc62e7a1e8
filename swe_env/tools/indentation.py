"""Gives new lines a file's own indentation, when their author wrote another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise

_SPACES = 4


class Ambiguous(Exception):
    """One written indentation stands for several of the file; how wide it is."""

    def __init__(self, indent: str) -> None:
        super().__init__(f"{len(indent)} characters")


@dataclass(frozen=True, slots=True)
class _Scale:
    """What a step of the author's indentation is in the file."""

    written: int
    """Characters."""
    char: str
    actual: str

    def deeper(self, extra: str) -> str:
        """The file's form of indentation beyond a known one; what is no whole step is kept."""
        if set(extra) != {self.char}:
            return extra
        count, rest = divmod(len(extra), self.written)
        return self.actual * count + extra[:rest]

    def shallower(self, indent: str, missing: int) -> str:
        """The file's indentation with `missing` of the author's characters less."""
        less = len(self.actual) * missing // self.written
        return indent[: max(len(indent) - less, 0)]


def step(lines: Iterable[str]) -> str:
    """One level of a file's indentation: a tab, or its smallest run of spaces, four by default."""
    indents = [indent for line in lines if line.strip() and (indent := _indent(line))]
    if sum(indent[0] == "\t" for indent in indents) * 2 > len(indents):
        return "\t"
    return " " * min((len(indent) for indent in indents if len(indent) > 1), default=_SPACES)


def reindent(
    new: Sequence[str], written: Sequence[str], actual: Sequence[str], level: str = "    "
) -> list[tuple[str, int]]:
    """`new`, whose author indented as in `written`, indented as the file's `actual` lines are.

    A line that is in `written` too is the file's own, whatever its indentation.

    Args:
        new: the lines that shall stand there.
        written: the lines that stand there, as the author of `new` wrote them.
        actual: the same lines as the file has them.
        level: one level of the file's indentation, for steps that `written` does not have.

    Returns:
        Each line with the place in `actual` of the line that it is, stands for or follows.

    Raises:
        Ambiguous: a new line's indentation stands for several in the file.
    """
    known: defaultdict[str, set[str]] = defaultdict(set)
    for line, own in zip(written, actual, strict=True):
        if line.strip():
            known[_indent(line)].add(_indent(own))
    scale = _scale(known, [*written, *new], level)
    fresh: list[tuple[str, int]] = []
    before, after = [line.rstrip() for line in written], [line.rstrip() for line in new]
    for kind, first, last, start, end in SequenceMatcher(
        a=before, b=after, autojunk=False
    ).get_opcodes():
        for place in range(start, end):
            if kind == "equal":
                kept = first + place - start
                _check_twins(before[kept], before, after, actual)
                fresh.append((actual[kept], kept))
                continue
            near = max(min(first + place - start, last - 1), 0)
            fresh.append((_placed(new[place], known, scale), near))
    return fresh


def _check_twins(line: str, before: list[str], after: list[str], actual: Sequence[str]) -> None:
    """Of lines written alike that differ in the file it must be plain which are left."""
    if line and (count := before.count(line)) > 1 and after.count(line) != count:
        there = {_indent(a) for b, a in zip(before, actual, strict=True) if b == line}
        if len(there) > 1:
            raise Ambiguous(_indent(line))


def _placed(line: str, known: dict[str, set[str]], scale: _Scale | None) -> str:
    body, indent = line.lstrip(), _indent(line)
    if not body:
        return ""
    around = max((w for w in known if indent.startswith(w)), key=len, default=None)
    reference = min(known, key=len) if around is None else around
    if len(known[reference]) > 1:
        raise Ambiguous(reference)
    (there,) = known[reference]
    if around is not None:
        extra = indent[len(around) :]
        return there + (scale.deeper(extra) if scale and extra else extra) + body
    missing = len(reference) - len(indent)
    if scale:
        return scale.shallower(there, missing) + body
    return there[: max(len(there) - missing, 0)] + body


def _scale(known: dict[str, set[str]], lines: Sequence[str], level: str) -> _Scale | None:
    """From two indentations in both forms; else, where tabs meet spaces, from the file's level."""
    pairs = sorted((w, next(iter(a))) for w, a in known.items() if len(a) == 1)
    steps = [
        (wide[len(narrow) :], there[len(here) :])
        for narrow, here in pairs
        for wide, there in pairs
        if wide != narrow and wide.startswith(narrow)
        if there != here and there.startswith(here)
    ]
    for extra, there in sorted(steps, key=lambda found: len(found[0])):
        if len(set(extra)) == 1:
            return _Scale(len(extra), extra[0], there)
    indents = {_indent(line) for line in lines if line.strip()}
    chars = {char for indent in indents for char in indent}
    if len(chars) != 1 or chars == set(level):
        return None
    widths = sorted({0, *map(len, indents)})
    smallest = min(b - a for a, b in pairwise(widths))
    return _Scale(smallest, chars.pop(), level)


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]
