"""The one way tools change files: nothing lost, no broken syntax, undoable, shown briefly."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from difflib import SequenceMatcher

from swe_env.errors import ToolError
from swe_env.tools.base import ToolContext
from swe_env.tools.text import TextFile, is_binary, numbered, split

_AROUND = 3
_SHOWN = 40
_HISTORY = "changes"
_PARSED = 2 << 20
"""Characters of a file beyond which its syntax is not checked."""


def change(ctx: ToolContext, path: str, new: bytes, old: bytes | None, said: str = "") -> str:
    """Write `new` over `old` (None: a new file) and say what it looks like now.

    Raises:
        ToolError: nothing would change, or a Python file would no longer parse.
    """
    if new == old:
        raise ToolError(f"nothing to do: the edit leaves {path} as it is.")
    check_syntax(path, new, old)
    ctx.sandbox.files.write(path, new)
    remember(ctx, [(path, old)])
    head = f"Created {path}." if old is None else f"Edited {path}."
    return "\n".join(part for part in (f"{head} {said}".strip(), snippet(old, new)) if part)


def remember(ctx: ToolContext, before: Sequence[tuple[str, bytes | None]]) -> None:
    """Keep what one call changed, for `undo`."""
    ctx.state[_HISTORY] = (*ctx.state.get(_HISTORY, ()), tuple(before))


def take_back(ctx: ToolContext) -> list[str]:
    """Put the files of the last change back; their paths.

    Raises:
        ToolError: nothing was changed through the tools, or all of it is undone.
    """
    history = ctx.state.get(_HISTORY, ())
    if not history:
        raise ToolError("there is nothing to undo: no edit was made with the editing tools.")
    *rest, last = history
    for path, data in last:
        if data is not None:
            ctx.sandbox.files.write(path, data)
        elif ctx.sandbox.files.stat(path) is not None:
            ctx.sandbox.files.remove(path)
    ctx.state[_HISTORY] = tuple(rest)
    return [path for path, _ in last]


def check_syntax(path: str, new: bytes, old: bytes | None) -> None:
    """Refuse to break a Python file that was sound; a broken one may change as it likes.

    Raises:
        ToolError: with the error and the lines around it.
    """
    if not path.endswith((".py", ".pyi")):
        return
    error = syntax_error(new)
    if error is None or (old is not None and syntax_error(old) is not None):
        return
    line = error.lineno or 1
    lines = TextFile.decode(new).lines
    first = max(line - _AROUND, 1)
    shown = numbered(lines[first - 1 : line + _AROUND], first)
    raise ToolError(
        f"the edit was not made, {path} would no longer parse: {error.msg} at line {line}:\n"
        f"{shown}\nMend new_str (look at its indentation) and try again."
    )


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
    head = _common(before, after)
    tail = _common(before[head:][::-1], after[head:][::-1])
    first = max(head - _AROUND, 0)
    last = min(len(after) - tail + _AROUND, len(after))
    lines = after[first:last]
    if len(lines) <= _SHOWN:
        return numbered(lines, first + 1)
    half = _SHOWN // 2
    left_out = len(lines) - 2 * half
    top, bottom = numbered(lines[:half], first + 1), numbered(lines[-half:], last - half + 1)
    return f"{top}\n[... {left_out} lines left out ...]\n{bottom}"


def _common(first: Sequence[str], second: Sequence[str]) -> int:
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
