"""Git run so that neither the user's settings nor the clock can change what it makes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from swe_env.errors import TaskError

_AUTHOR = "swe-env"
_EMAIL = "swe-env@localhost"
_DATE = "2020-01-01T00:00:00+0000"
_TIME = 1_577_836_800 * 10**9
"""`_DATE` in nanoseconds."""
_LATER = _TIME + 10**9
"""Git compares contents, not times, where the index is not newer than the file."""
ATTRIBUTES = "* -text -ident -filter -working-tree-encoding !diff\n"
"""For a repository's ``info/attributes``, which no file of the tree overrules: what is stored and
compared is what the files hold."""
_ONE_PACK = ("-c", "core.bigFileThreshold=1", "-c", "core.compression=1")
"""`git add` writes files over the threshold straight into one pack: half the time of one each."""
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
        "GIT_AUTHOR_NAME": _AUTHOR,
        "GIT_AUTHOR_EMAIL": _EMAIL,
        "GIT_AUTHOR_DATE": _DATE,
        "GIT_COMMITTER_NAME": _AUTHOR,
        "GIT_COMMITTER_EMAIL": _EMAIL,
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


def commit_all(folder: Path) -> None:
    """Make `folder` a repository of exactly one commit holding every file.

    The commit's name depends on the files alone. An earlier `.git` is dropped, and nothing but the
    commit is left: no reflog, hook, remote, tag or unreachable object. All files get one time:
    theirs would tell which were changed last.
    """
    shutil.rmtree(folder / ".git", ignore_errors=True)
    must(folder, "init", "-q", "--template=")
    info = folder / ".git" / "info"
    info.mkdir(exist_ok=True)
    (info / "attributes").write_text(ATTRIBUTES)
    _stamp(folder, _TIME)
    must(folder, *_ONE_PACK, "add", "-A", "-f")
    must(folder, "commit", "-q", "--allow-empty", "-m", "base")
    (folder / ".git" / "COMMIT_EDITMSG").unlink(missing_ok=True)
    _stamp(folder / ".git", _LATER)


def stamp(folder: Path) -> None:
    """Give a checkout's files the one time that `commit_all` gives them."""
    _stamp(folder, _TIME)
    _stamp(folder / ".git", _LATER)


def _stamp(folder: Path, time: int) -> None:
    """Give a folder and everything in it one time, a `.git` left out."""
    for top, names, files in os.walk(folder):
        if ".git" in names:
            names.remove(".git")
        for path in (top, *(f"{top}/{name}" for name in sorted((*names, *files)))):
            os.utime(path, ns=(time, time), follow_symlinks=False)
