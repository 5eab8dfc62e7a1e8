"""Unified diffs: written for a changed file, applied to a tree."""

from __future__ import annotations

import difflib
import os
import re
import stat
from pathlib import Path

from swe_env.errors import PatchError
from swe_env.repos.git import git, reserved

_CONTEXT = 3


def _lines(text: str) -> list[str]:
    # Only "\n" ends a line of a diff; str.splitlines would also split at form feeds and the like.
    lines = text.split("\n")
    ended = [line + "\n" for line in lines[:-1]]
    return [*ended, lines[-1]] if lines[-1] else ended


def file_diff(path: str, old: str, new: str) -> str:
    """Git's unified diff of one file that exists before and after; empty when nothing changed."""
    if old == new:
        return ""
    before, after = _lines(old), _lines(new)
    # Equal heads and tails stay out of the comparison: difflib is quadratic in what is left, and
    # could pair a removed passage with lines at the end that git then looks for elsewhere.
    head = 0
    while head < min(len(before), len(after)) and before[head] == after[head]:
        head += 1
    tail = 0
    while tail < min(len(before), len(after)) - head and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    ends = len(before) - tail, len(after) - tail
    matcher = difflib.SequenceMatcher(
        None, before[head : ends[0]], after[head : ends[1]], autojunk=False
    )
    # What get_grouped_opcodes groups; typeshed does not list the attribute.
    matcher.opcodes = [  # type: ignore[attr-defined]
        ("equal", 0, head, 0, head),
        *((tag, *(head + place for place in places)) for tag, *places in matcher.get_opcodes()),
        ("equal", ends[0], len(before), ends[1], len(after)),
    ]
    out = [f"diff --git a/{path} b/{path}\n", f"--- a/{path}\n", f"+++ b/{path}\n"]
    for group in matcher.get_grouped_opcodes(_CONTEXT):
        _, i1, _, j1, _ = group[0]
        _, _, i2, _, j2 = group[-1]
        out.append(f"@@ -{_range(i1, i2 - i1)} +{_range(j1, j2 - j1)} @@\n")
        for tag, a1, a2, b1, b2 in group:
            if tag == "equal":
                out += _marked(" ", before[a1:a2])
                continue
            out += _marked("-", before[a1:a2])
            out += _marked("+", after[b1:b2])
    return "".join(out)


def new_file_diff(path: str, text: str) -> str:
    """Git's unified diff that makes a file which is not there before."""
    head = f"diff --git a/{path} b/{path}\nnew file mode 100644\n"
    if not text:
        return head
    lines = _lines(text)
    body = "".join(_marked("+", lines))
    return f"{head}--- /dev/null\n+++ b/{path}\n@@ -0,0 +{_range(0, len(lines))} @@\n{body}"


_RANGES = re.compile(r"^@@ -(\S+) \+(\S+) @@(.*)$", re.DOTALL)
_OTHER_WAY = {
    "new file mode ": "deleted file mode ",
    "deleted file mode ": "new file mode ",
    "old mode ": "new mode ",
    "new mode ": "old mode ",
    "rename from ": "rename to ",
    "rename to ": "rename from ",
}


def reverse_patch(patch: str) -> str:
    """The unified diff that undoes a unified diff (no binary files)."""
    out: list[str] = []
    names: list[str] = []
    old = new = 0  # lines of the hunk that are still to come
    for line in _lines(patch):
        if old > 0 or new > 0:
            old -= line[:1] in " -\n"
            new -= line[:1] in " +\n"
            out.append({"-": "+", "+": "-"}.get(line[:1], line[:1]) + line[1:])
            continue
        if found := _RANGES.match(line):
            old, new = (int(part.partition(",")[2] or 1) for part in found.group(1, 2))
            out.append(f"@@ -{found[2]} +{found[1]} @@{found[3]}")
        elif line.startswith("--- "):
            names.append(line[4:])
        elif line.startswith("+++ ") and names:
            out += [f"--- {_side(line[4:], 'a')}", f"+++ {_side(names.pop(), 'b')}"]
        else:
            start = next((start for start in _OTHER_WAY if line.startswith(start)), "")
            if not line.startswith("index "):
                out.append(_OTHER_WAY.get(start, "") + line.removeprefix(start))
    return "".join(out)


def _side(name: str, letter: str) -> str:
    return name if name.startswith("/dev/null") else f"{letter}/{name[2:]}"


def _range(start: int, length: int) -> str:
    return f"{start + 1 if length else start},{length}"


def _marked(mark: str, lines: list[str]) -> list[str]:
    ending = "\n\\ No newline at end of file\n"
    return [mark + line if line.endswith("\n") else mark + line + ending for line in lines]


def apply_patch(tree: Path, patch: str) -> None:
    """Apply a unified diff to the files under `tree`, all of it or nothing.

    Raises:
        PatchError: it does not apply (names the first place), is no diff, touches `.git`, or
            leads out of the tree.
    """
    if not patch.strip():
        return
    try:
        data = (patch if patch.endswith("\n") else patch + "\n").encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise PatchError(f"The patch is no text: {error.reason} at {error.start}.") from error
    # --git-dir points nowhere: the tree's own repository must not influence the result, and a
    # repository around the tree would make git skip files silently.
    done = git(tree, "--git-dir=/dev/null", "apply", "--whitespace=nowarn", "-", stdin=data)
    if done.returncode:
        raise PatchError(_reason(done.stderr.decode("utf-8", "replace")))


def plainly_applied(tree: Path, patch: str) -> dict[str, bytes] | None:
    """What a plain patch makes of the files it changes, without starting git.

    Plain is a patch that changes lines of regular files only, each hunk's where its header says.
    Of such a patch git makes the same. It reads each file once and writes none.

    Returns:
        Path → new content, or None for any other patch: `apply_patch` knows what becomes of it.
    """
    try:
        lines = patch.encode("utf-8", "surrogateescape").splitlines(keepends=True)
    except UnicodeEncodeError:
        return None
    if not all(line.endswith(b"\n") for line in lines):  # a lone "\r" is a line's end to Python
        return None
    found: dict[str, bytes] = {}
    place = 0
    while place < len(lines):
        header = _PLAIN.match(b"".join(lines[place : place + 4]))
        if header is None:
            return None
        path = os.fsdecode(header["path"])
        old = None if path in found else _content(tree, path)
        place += header[0].count(b"\n")
        hunks = []
        while place < len(lines) and (numbers := _HUNK.match(lines[place])):
            first, place = place + 1, place + 1
            while place < len(lines) and lines[place][:1] in b" -+\\":
                place += 1
            hunks.append(([int(number or 1) for number in numbers.groups()], lines[first:place]))
        new = None if old is None or not hunks else _replaced(old, hunks)
        if new is None:
            return None
        found[path] = new
    return found


_PLAIN = re.compile(
    rb"diff --git a/(?P<path>[^\n\0\"]+) b/(?P=path)\n"
    rb"(?:index [0-9a-f]+\.\.[0-9a-f]+(?: 100(?:644|755))?\n)?"
    rb"--- a/(?P=path)\n\+\+\+ b/(?P=path)\n"
)
_HUNK = re.compile(rb"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")


def _content(tree: Path, path: str) -> bytes | None:
    """The file at a path that no link leads to; None when there is none."""
    parts = path.split("/")
    if not {"", ".", ".."}.isdisjoint(parts) or any(reserved(os.fsencode(p)) for p in parts):
        return None
    try:
        modes = [tree.joinpath(*parts[:end]).lstat().st_mode for end in range(1, len(parts) + 1)]
    except OSError:
        return None
    whole = all(map(stat.S_ISDIR, modes[:-1])) and stat.S_ISREG(modes[-1])
    return tree.joinpath(path).read_bytes() if whole else None


def _replaced(content: bytes, hunks: list[tuple[list[int], list[bytes]]]) -> bytes | None:
    """The content with the hunks' new lines for their old ones; None where these differ."""
    before, after, grown = content.split(b"\n"), [], 0
    before = [line + b"\n" for line in before[:-1]] + ([before[-1]] if before[-1] else [])
    done = 0
    for (old_at, old_count, new_at, new_count), body in hunks:
        old, new = _sides(body)
        first, last = old_at - 1, old_at - 1 + old_count
        if (len(old), len(new)) != (old_count, new_count) or not (old and new) or old == new:
            return None
        if body[-1][:1] != b" " and last != len(before):  # git wants it to be the end
            return None
        if new_at != old_at + grown or first < done or before[first:last] != old:
            return None
        after += [*before[done:first], *new]
        done, grown = last, grown + new_count - old_count
    return b"".join([*after, *before[done:]])


def _sides(body: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """A hunk's old and new lines; a backslash takes the line before it its end."""
    old: list[bytes] = []
    new: list[bytes] = []
    for number, line in enumerate(body):
        mark = line[:1]
        if mark == b"\\":
            continue
        cut = body[number + 1 : number + 2]
        text = line[1:-1] if cut and cut[0][:1] == b"\\" else line[1:]
        if mark in b" -":
            old.append(text)
        if mark in b" +":
            new.append(text)
    return old, new


def _reason(stderr: str) -> str:
    errors = [line.removeprefix("error: ") for line in stderr.splitlines() if "error: " in line]
    first = errors[0] if errors else stderr.strip().splitlines()[0] if stderr.strip() else ""
    if found := re.match(r"patch failed: (.+):(\d+)", first):
        return (
            f"The patch does not apply: {found[1]} differs from what the patch expects at "
            f"line {found[2]}; make the patch against the task's base commit."
        )
    if found := re.match(r"invalid path '(.+)'", first):
        return f"The patch is refused: it touches {found[1]!r}, outside the tree or inside .git."
    if "beyond a symbolic link" in first:
        return f"The patch is refused: {first} and would leave the tree."
    if "No valid patches" in first or "unrecognized input" in first:
        return "The patch is no unified diff: no file header and hunk was found in it."
    return f"The patch does not apply: {first}."
