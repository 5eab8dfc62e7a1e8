"""Git run so that neither the user's settings nor the clock can change what it makes."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from swe_env.errors import TaskError

AUTHOR = "swe-env"
EMAIL = "swe-env@localhost"
SECONDS = 1_577_836_800
"""2020-01-01T00:00:00+0000, the time of every commit."""
_DATE = f"{SECONDS} +0000"
ATTRIBUTES = "* -text -ident -filter -working-tree-encoding !diff\n"
"""For a repository's ``info/attributes``, which no file of the tree overrules: what is stored and
compared is what the files hold."""
_RESERVED = re.compile(rb"(?i)(\.git|git~1)[. ]*(?:$|[:\\])")
_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.autocrlf": "false",
    "core.logAllRefUpdates": "false",
    "core.fsync": "none",
    "core.attributesFile": "/dev/null",
    "core.excludesFile": "/dev/null",
    "commit.gpgSign": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "safe.directory": "*",
    "advice.detachedHead": "false",
    "init.defaultBranch": "main",
    "uploadpack.allowAnySHA1InWant": "true",
}


def reserved(name: bytes) -> bool:
    """Whether git takes no file of that name, as somewhere it would be a repository's own."""
    return _RESERVED.match(name) is not None


def environment() -> dict[str, str]:
    """Variables under which git sees no configuration but ours, and asks nothing."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    settings = {"GIT_CONFIG_COUNT": str(len(_SETTINGS))}
    for index, (key, value) in enumerate(_SETTINGS.items()):
        settings |= {f"GIT_CONFIG_KEY_{index}": key, f"GIT_CONFIG_VALUE_{index}": value}
    return {
        **kept,
        **settings,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": AUTHOR,
        "GIT_AUTHOR_EMAIL": EMAIL,
        "GIT_AUTHOR_DATE": _DATE,
        "GIT_COMMITTER_NAME": AUTHOR,
        "GIT_COMMITTER_EMAIL": EMAIL,
        "GIT_COMMITTER_DATE": _DATE,
        "LC_ALL": "C",
    }


def git(folder: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run git in `folder`; the caller looks at `returncode`.

    Raises:
        TaskError: git is not installed.
    """
    command: Sequence[str] = ("git", *arguments)
    try:
        return subprocess.run(
            command, cwd=folder, input=stdin, capture_output=True, env=environment(), check=False
        )
    except FileNotFoundError as error:
        raise TaskError("git is not installed: install it (`apt-get install git`).") from error


def must(folder: Path, *arguments: str) -> str:
    """Run git and return its output.

    Raises:
        TaskError: git failed; carries the last line it said.
    """
    done = git(folder, *arguments)
    if done.returncode:
        verb = next(part for part in arguments if not part.startswith("-") and "=" not in part)
        raise TaskError(f"git {verb} failed in {folder.name}: {said(done)}.")
    return done.stdout.decode("utf-8", "replace")


def said(done: subprocess.CompletedProcess[bytes]) -> str:
    """The last line of what a failed git wrote, without its full stop."""
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].rstrip(".") if lines else f"exit code {done.returncode}"
