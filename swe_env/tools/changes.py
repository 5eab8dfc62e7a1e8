"""The one way tools change files: nothing lost, no broken syntax, undoable, shown briefly."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from swe_env.errors import ToolError
from swe_env.tools.base import ToolContext
from swe_env.tools.text import TextFile, is_binary, numbered, split

AROUND = 3
_SHOWN = 40
_HISTORY = "changes"
_COMPILE = "import sys; compile(sys.stdin.buffer.read(), '<edit>', 'exec', 0, 1)"
_PARSED = 2 << 20
"""Characters of a file beyond which its syntax is not checked."""


@dataclass(frozen=True, slots=True)
class Change:
    """What one call did to one file."""

    path: str
    before: bytes | None
    """None: there was no file."""
    after: bytes
    """Digest of what it left, empty when it removed the file."""


def change(ctx: ToolContext, path: str, new: bytes, old: bytes | None, said: str = "") -> str:
    """Write `new` over `old` (None: a new file) and say what it looks like now.

    Raises:
        ToolError: nothing would change, or a Python file would no longer parse.
    """
    write(ctx, path, new, old)
    head = f"Created {path}." if old is None else f"Edited {path}."
    return "\n".join(part for part in (f"{head} {said}".strip(), snippet(old, new)) if part)


def write(ctx: ToolContext, path: str, new: bytes, old: bytes | None) -> None:
    """Write `new` over `old` (None: a new file).

    Raises:
        ToolError: nothing would change, or a Python file would no longer parse.
    """
    if new == old:
        raise ToolError(f"nothing to do: the edit leaves {path} as it is.")
    check_syntax(ctx, path, new, old)
    ctx.sandbox.files.write(path, new)
    remember(ctx, [(path, old, new)])


def remember(ctx: ToolContext, made: Sequence[tuple[str, bytes | None, bytes | None]]) -> None:
    """Keep what one call changed, (path, before, after) each, for `undo`."""
    group = tuple(Change(path, before, _digest(after)) for path, before, after in made)
    ctx.state[_HISTORY] = (*ctx.state.get(_HISTORY, ()), group)


def take_back(ctx: ToolContext, path: str | None = None) -> list[str]:
    """Put the files of the last change back, or that file of the last change to it; their paths.

    Raises:
        ToolError: there is no such change (any more), or a command changed the file since.
    """
    history = list(ctx.state.get(_HISTORY, ()))
    files = ctx.sandbox.files
    for place in range(len(history) - 1, -1, -1):
        wanted = [made for made in history[place] if path in (None, made.path)]
        if not wanted:
            continue
        for made in wanted:
            now = files.read(made.path) if files.stat(made.path) is not None else None
            if _digest(now) != made.after:
                raise ToolError(
                    f"{made.path} was changed since by something else, which undo would lose: "
                    "edit it instead."
                )
        for made in wanted:
            if made.before is not None:
                files.write(made.path, made.before)
            elif made.after:
                files.remove(made.path)
        history[place] = tuple(made for made in history[place] if made not in wanted)
        ctx.state[_HISTORY] = tuple(group for group in history if group)
        return [made.path for made in wanted]
    of = f" to {path}" if path else ""
    raise ToolError(f"there is nothing to undo: no edit{of} was made with the editing tools.")


def _digest(data: bytes | None) -> bytes:
    return b"" if data is None else hashlib.blake2b(data, digest_size=16).digest()


def check_syntax(ctx: ToolContext, path: str, new: bytes, old: bytes | None) -> None:
    """Refuse to break a Python file that was sound; a broken one may change as it likes.

    Raises:
        ToolError: with the error and the lines around it.
    """
    if not path.endswith((".py", ".pyi")):
        return
    error = syntax_error(new)
    if error is None or (old is not None and syntax_error(old) is not None):
        return
    if _compiles_there(ctx, new):
        return
    line = error.lineno or 1
    lines = TextFile.decode(new).lines
    first = max(line - AROUND, 1)
    shown = numbered(lines[first - 1 : line + AROUND], first)
    raise ToolError(
        f"the edit was not made, {path} would no longer parse: {error.msg} at line {line}:\n"
        f"{shown}\nMend new_str (look at its indentation) and try again."
    )


def _compiles_there(ctx: ToolContext, data: bytes) -> bool:
    """Whether the task's own Python, which may be newer than ours, takes what ours refuses."""
    command = ["python", "-c", _COMPILE]
    return ctx.sandbox.exec(command, stdin=data, timeout=10.0).exit_code == 0


def syntax_error(data: bytes) -> SyntaxError | None:
    """What keeps Python from compiling a file, or None."""
    if len(data) > _PARSED:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(data, "<edit>", "exec", dont_inherit=True)
    except SyntaxError as error:
        return error
    except (ValueError, RecursionError, MemoryError, OverflowError):
        return None
    return None


def snippet(old: bytes | None, new: bytes) -> str:
    """The changed lines with their numbers and a few around them."""
    if is_binary(new):
        return ""
    after = TextFile.decode(new).lines
    if old is None:
        return f"[{len(after)} lines]"
    before = TextFile.decode(old).lines
    first, last = span(before, after)
    lines = after[first:last]
    if len(lines) <= _SHOWN:
        return numbered(lines, first + 1)
    half = _SHOWN // 2
    left_out = len(lines) - 2 * half
    top, bottom = numbered(lines[:half], first + 1), numbered(lines[-half:], last - half + 1)
    return f"{top}\n[... {left_out} lines left out ...]\n{bottom}"


def span(before: Sequence[str], after: Sequence[str], around: int = AROUND) -> tuple[int, int]:
    """First line (from 0) and end of what changed in `after`, with lines around it."""
    head = common(before, after)
    tail = common(before[head:][::-1], after[head:][::-1])
    return max(head - around, 0), min(len(after) - tail + around, len(after))


def common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the common prefix."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))


def nearest(lines: Sequence[str], wanted: str) -> str:
    """The passage of a file most like `wanted`, with line numbers; empty when none is near."""
    target = [line.strip() for line in split(wanted)]
    if not target or not lines or len(lines) > 20_000:
        return ""
    key = max(target, key=len)
    offset = target.index(key)
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(key)
    best, place = 0.6, -1
    for index, line in enumerate(lines):
        matcher.set_seq1(line.strip())
        if matcher.real_quick_ratio() > best and matcher.quick_ratio() > best:
            ratio = matcher.ratio()
            if ratio > best:
                best, place = ratio, index
    if place < 0:
        return ""
    first = max(place - offset, 0)
    return numbered(list(lines[first : first + min(len(target), 10)]), first + 1)
