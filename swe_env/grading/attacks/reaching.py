"""Patches that reach outside the workspace, or into its `.git`."""

from __future__ import annotations

from swe_env.grading.attacks.attempt import Attempt


def _new(path: str, text: str, mode: str = "100644", *, end: str = "\n") -> str:
    lines = "".join(f"+{line}\n" for line in text.splitlines())
    count = len(text.splitlines())
    missing = "" if end else "\\ No newline at end of file\n"
    return (
        f"diff --git a/{path} b/{path}\nnew file mode {mode}\n--- /dev/null\n+++ b/{path}\n"
        f"@@ -0,0 +1,{count} @@\n{lines}{missing}"
    )


def _link(path: str, target: str) -> str:
    return _new(path, target, "120000", end="")


REACHING = (
    Attempt(
        "git hook",
        patch=_new(".git/hooks/post-checkout", "#!/bin/sh\ntouch /tmp/x", "100755"),
        named=".git",
    ),
    Attempt(
        "git alias",
        patch=_new(".git/config", "[alias]\n\tapply = !true\n[core]\n\tfsmonitor = true"),
        named=".git",
    ),
    Attempt("git folder of a submodule", patch=_new("kept/.git/config", "[core]"), named=".git"),
    Attempt(".GIT in another case", patch=_new(".GIT/hooks/pre-commit", "x"), named=".GIT"),
    Attempt("parent folder", patch=_new("../escaped", "x"), named="escaped"),
    Attempt("absolute path", patch=_new("/tmp/swe-env-escaped", "x"), named="escaped"),
    Attempt("link to outside", patch=_link("out", "../../etc"), named="out of the workspace"),
    Attempt("absolute link", patch=_link("out", "/etc"), named="out of the workspace"),
    Attempt(
        "written through a link", patch=_link("out", ".") + _new("out/x", "x"), named="symbolic"
    ),
    Attempt(
        "renamed into .git",
        patch=(
            "diff --git a/setup.cfg b/.git/config\nsimilarity index 100%\nrename from setup.cfg\n"
            "rename to .git/config\n"
        ),
        named=".git",
    ),
)
"""None is applied; the error names the place."""
