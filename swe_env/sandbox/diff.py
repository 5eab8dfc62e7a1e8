"""What changed in a workspace, by a git that the workspace cannot influence."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

from swe_env.errors import SandboxError
from swe_env.sandbox.base import Files
from swe_env.sandbox.layered import Touched

_SETTINGS = {
    "core.fsmonitor": "false",
    "core.hooksPath": "/dev/null",
    "core.excludesFile": "/dev/null",
    "core.attributesFile": "/dev/null",
    # Copies and overlays keep size and modification time of a file, not its inode and ctime.
    "core.checkStat": "minimal",
    "core.trustctime": "false",
    "core.fileMode": "true",
    "core.symlinks": "true",
    "core.ignoreCase": "false",
    "core.autocrlf": "false",
    "core.safecrlf": "false",
    "core.untrackedCache": "false",
    "core.quotePath": "true",
    "diff.algorithm": "myers",
    "diff.suppressBlankEmpty": "false",
    "diff.orderFile": "/dev/null",
    "advice.addEmbeddedRepo": "false",
    "safe.directory": "*",
    "gc.auto": "0",
}
_DIFF = [
    "diff", "--binary", "--full-index", "--no-color", "--no-ext-diff",
    "--no-textconv", "--no-renames", "--src-prefix=a/", "--dst-prefix=b/", "--unified=3",
    "--ignore-submodules=none", "HEAD", "--",
]  # fmt: skip
_STAGED = ["diff", "--cached", *_DIFF[1:]]


class Ran(NamedTuple):
    """A git command that ended."""

    exit_code: int
    output: bytes


class Run(Protocol):
    """Runs a program of this machine in the workspace's root."""

    def __call__(self, argv: Sequence[str], env: Mapping[str, str], stdin: bytes = b"") -> Ran:
        """Its exit code and output (its errors where it has none)."""
        ...


Git = Callable[..., bytes]


def trusted_git(base: Path, *, worktree: str, scratch: str, run: Run) -> Git:
    """A function that runs git on `base`'s history with an index and objects of its own.

    No configuration or hook but what is given here has a say, and of attributes those of `base`'s
    ``info/attributes``, which overrule the workspace's. The arguments are those of `diff`. The
    function takes git's arguments, `stdin`, more `settings`, and the `most` that its exit code may
    be; it returns the output and raises `SandboxError` when git fails.
    """
    git_dir = base / ".git"
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_DIR": str(git_dir),
        "GIT_WORK_TREE": worktree,
        "GIT_INDEX_FILE": f"{scratch}/index",
        "GIT_OBJECT_DIRECTORY": f"{scratch}/objects",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": f"{git_dir}/objects",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
    }

    def git(
        *arguments: str,
        settings: Mapping[str, str] = MappingProxyType({}),
        stdin: bytes = b"",
        most: int = 0,
    ) -> bytes:
        chosen = {**_SETTINGS, **settings}
        options = [part for name, value in chosen.items() for part in ("-c", f"{name}={value}")]
        ran = run([_git(), *options, *arguments], env, stdin)
        if ran.exit_code > most:
            reason = ran.output.decode("utf-8", "replace").strip()
            raise SandboxError(f"git {arguments[0]} failed in the workspace: {reason}.")
        return ran.output

    return git


def diff(
    base: Path,
    *,
    files: Files,
    worktree: str,
    scratch: str,
    seed: Callable[[str], bool],
    run: Run,
    touched: Touched | None = None,
) -> str:
    """Git's diff from `base`'s HEAD to the workspace.

    Args:
        base: the pristine checkout; its ``.git`` is read, never written.
        files: the workspace.
        worktree: the workspace's path where `run` runs.
        scratch: a private folder there, for the index and new objects.
        seed: empties it and puts a copy of the index of that path there, with its time, by which
            git tells entries that may have changed unnoticed; False when there is none.
        run: starts git.
        touched: all that may have changed; None when that is not known.

    Raises:
        SandboxError: git failed; says how.
    """
    git = trusted_git(base, worktree=worktree, scratch=scratch, run=run)
    git_dir = base / ".git"

    def begin() -> None:
        if not seed(f"{git_dir}/index"):
            git("read-tree", "HEAD")

    begin()
    if touched is not None and _all_known(touched, base, files):
        return _text(git, _DIFF)
    try:
        git("add", "--all", "--", ".")
        output = git(*_STAGED)
        whole = b"160000" not in output
    except SandboxError:
        whole = False
    if not whole:
        begin()
        _add_around(git, files, _repositories(files), _special(files))
        output = git(*_STAGED)
    return _text(git, _STAGED, output)


def written(git: Git) -> str:
    """The diff from HEAD to what is in the index."""
    return _text(git, _STAGED)


def _text(git: Git, command: list[str], output: bytes | None = None) -> str:
    """What a diff command says, or said."""
    try:
        return (git(*command) if output is None else output).decode()
    except UnicodeDecodeError:
        # A text in another encoding: as a binary patch it survives being a string.
        binary = {"diff.default.binary": "true"}
        return git(*command, settings=binary).decode("utf-8", "replace")


def _all_known(touched: Touched, base: Path, files: Files) -> bool:
    """Whether git compares all that was touched without being told of new files."""
    return not touched.trees and all(
        _is_file(base / path) and ((now := files.stat(path)) is None or now.kind == "file")
        for path in touched.paths
    )


def _is_file(path: Path) -> bool:
    """Whether there is a file or a link."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def _repositories(files: Files) -> list[str]:
    """Folders below the root that are repositories of their own, the outermost of each nest."""
    found: list[str] = []
    for path, entry in files.walk():
        inner = any(path.startswith(f"{above}/") for above in found)
        if entry.kind == "dir" and not inner and files.stat(f"{path}/.git") is not None:
            found.append(path)
    return found


def _special(files: Files) -> list[str]:
    """FIFOs, sockets and devices."""
    return [path for path, entry in files.walk() if entry.kind == "other"]


def _add_around(git: Git, files: Files, nested: list[str], special: list[str]) -> None:
    """`git add --all` that takes repositories in the workspace for the folders they are.

    git itself would record such a folder as a submodule and lose what is in it; and where a file
    became a FIFO it would refuse to go on: the file is gone.
    """
    around = (f":(exclude,literal){path}" for path in (*nested, *special))
    git("add", "--all", "--", ".", *around)
    gone = b"\0".join(map(os.fsencode, special))
    git("update-index", "--force-remove", "-z", "--stdin", stdin=gone)
    for folder in nested:
        tracked = set(git("ls-files", "-z", "--", f":(literal){folder}").split(b"\0"))
        present = {
            os.fsencode(path)
            for path, entry in files.walk(folder)
            if entry.kind in ("file", "link")
        }
        names = b"\0".join(sorted((present | tracked) - {b""}))
        git("update-index", "--add", "--remove", "-z", "--stdin", stdin=names)


def _git() -> str:
    found = shutil.which("git")
    if found is None:
        raise SandboxError("git is missing on this machine: apt-get install git.")
    return found
