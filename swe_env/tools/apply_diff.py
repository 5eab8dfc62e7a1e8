"""`apply_diff`: a unified diff over one or several files, all of it or nothing."""

# ruff: noqa: D417 - `ctx` is not the model's to give, so the schema must not name it

from __future__ import annotations

from swe_env.errors import PatchError, ToolError
from swe_env.grading.guard import put_back, read_all
from swe_env.grading.patches import apply_patch, patch_paths
from swe_env.tools.base import ToolContext, tool
from swe_env.tools.changes import check_syntax, remember
from swe_env.tools.hunks import mend
from swe_env.tools.text import TextFile, is_binary


@tool
def apply_diff(ctx: ToolContext, diff: str) -> str:
    """Apply a unified diff to the repository, all of it or nothing.

    A hunk belongs where its lines stand; line numbers only decide between places that are alike.

    Args:
        diff: The diff, with paths relative to the repository's root.
    """
    files = ctx.sandbox.files
    paths = sorted(patch_paths(diff))
    if not paths:
        raise ToolError("diff has no file headers (--- a/path, +++ b/path).")
    before = read_all(files, paths)
    readable = {path: data for path, data in before.items() if data and not is_binary(data)}
    texts = {path: TextFile.decode(data) for path, data in readable.items()}
    try:
        apply_patch(ctx.sandbox, mend(diff, texts), what="The diff")
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
