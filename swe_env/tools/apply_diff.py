"""`apply_diff`: a unified diff over one or several files, all of it or nothing."""

# ruff: noqa: D417 - `ctx` is not the model's to give, so the schema must not name it

from __future__ import annotations

import re

from swe_env.errors import PatchError, PatchRefused, ToolError
from swe_env.grading.guard import put_back, read_all
from swe_env.grading.patches import apply_patch, patch_paths
from swe_env.tools.base import ToolContext, tool
from swe_env.tools.changes import check_syntax, remember

_HUNK = re.compile(r"^@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@(.*)$")


def mend(diff: str) -> str:
    """A diff as a model writes it, with its hunks counted and blank lines marked as git wants.

    Where a hunk belongs is left to git, which looks for its lines.
    """
    lines = diff.split("\n")
    mended: list[str] = []
    place = 0
    while place < len(lines):
        header = _HUNK.match(lines[place])
        place += 1
        if header is None:
            mended.append(lines[place - 1])
            continue
        body = []
        while place < len(lines) and not _ends_hunk(lines, place):
            body.append(lines[place])
            place += 1
        while body and not body[-1]:
            body.pop()  # blank lines after the hunk
        body = [line or " " for line in body]
        old = sum(line[0] in " -" for line in body)
        new = sum(line[0] in " +" for line in body)
        first, second, rest = header.groups()
        mended += [f"@@ -{first},{old} +{second},{new} @@{rest}", *body]
    return "\n".join([*mended, ""])


def _ends_hunk(lines: list[str], place: int) -> bool:
    line = lines[place]
    if line.startswith("--- ") and place + 1 < len(lines):
        return lines[place + 1].startswith("+++ ")
    return bool(line) and line[0] not in " +-\\"


@tool
def apply_diff(ctx: ToolContext, diff: str) -> str:
    """Apply a unified diff to the repository, all of it or nothing.

    Args:
        diff: The diff, with paths relative to the repository's root.
    """
    files = ctx.sandbox.files
    paths = sorted(patch_paths(diff))
    if not paths:
        raise ToolError("diff has no file headers (--- a/path, +++ b/path).")
    before = read_all(files, paths)
    try:
        try:
            apply_patch(ctx.sandbox, diff, what="The diff")
        except PatchRefused:
            raise
        except PatchError:
            apply_patch(ctx.sandbox, mend(diff), what="The diff")
    except PatchError as error:
        raise ToolError(str(error)) from error
    after = read_all(files, paths)
    changed = [path for path in paths if before[path] != after[path]]
    if not changed:
        raise ToolError("nothing to do: the diff leaves every file as it is.")
    try:
        for path in changed:
            if (new := after[path]) is not None:
                check_syntax(ctx, path, new, before[path])
    except ToolError:
        for path in changed:
            put_back(files, path, before[path])
        raise
    remember(ctx, [(path, before[path], after[path]) for path in changed])
    return f"Applied the diff to {', '.join(changed)}."
