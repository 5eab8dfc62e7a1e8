"""What changed in a workspace, by a git that the workspace cannot influence."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

from swe_env.errors import SandboxError, ToolError
from swe_env.sandbox.base import Files
from swe_env.sandbox.layered import LayeredFiles, Touched

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
    seed: Callable[[str, bool], bool],
    run: Run,
) -> str:
    """Git's diff from `base`'s HEAD to the workspace.

    Args:
        base: the pristine checkout; its ``.git`` is read, never written.
        files: the workspace.
        worktree: the workspace's path where `run` runs.
        scratch: a private folder there, for the index and new objects.
        seed: empties it and puts a copy of the index of that path there, with its time, by which
            git tells entries that may have changed unnoticed, or if told to with one by which all
            may have; False when there is none.
        run: starts git.

    Raises:
        SandboxError: git failed; says how.
        ToolError: the workspace cannot be read.
    """
    git = trusted_git(base, worktree=worktree, scratch=scratch, run=run)
    index = base / ".git" / "index"
    doubted, known = True, False
    if isinstance(files, LayeredFiles):
        touched = files.touched()
        if not touched.paths and not touched.trees:
            return ""
        doubted, known = _hides(touched, files), _all_tracked(touched, files, index)

    def begin() -> None:
        if not seed(str(index), doubted):
            git("read-tree", "HEAD")

    begin()
    if known:
        return _text(git, _DIFF)
    try:
        git("add", "--all", "--", ".")
        output = git(*_STAGED)
        whole = b"160000" not in output
    except SandboxError:
        whole = False
    if not whole:
        begin()
        _add_around(git, files)
        output = git(*_STAGED)
    found = _decoded(output)
    return _text(git, _STAGED) if found is None else found


def written(git: Git) -> str:
    """The diff from HEAD to what is in the index."""
    return _text(git, _STAGED)


def _text(git: Git, command: list[str]) -> str:
    """What a diff command says."""
    found = _decoded(git(*command))
    if found is None:
        # A text in another encoding: as a binary patch it survives being a string.
        binary = {"diff.default.binary": "true"}
        found = git(*command, settings=binary).decode("utf-8", "replace")
    return found


def _decoded(output: bytes) -> str | None:
    try:
        return output.decode()
    except UnicodeDecodeError:
        return None


def _hides(touched: Touched, files: LayeredFiles) -> bool:
    """Whether an entry has the size and time that it had, whatever it holds now.

    All files of a base have one time, so one moved to another's place may be such.
    """
    return any(map(files.passes_for_base, touched.paths)) or any(
        (files.base / tree).is_dir() for tree in touched.trees
    )


def _all_tracked(touched: Touched, files: LayeredFiles, index: Path) -> bool:
    """Whether git compares all that may differ without being told to look for new files."""
    if touched.trees or any(path.rpartition("/")[2] == ".gitignore" for path in touched.paths):
        return False
    known = _tracked(index)
    return all(
        path in known and ((now := files.lstat(path)) is None or now.kind in ("file", "link"))
        for path in touched.paths
    )


def _tracked(index: Path) -> frozenset[str]:
    """Every path in an index that was written for a base; none for one of another kind."""
    try:
        info = index.stat()
    except OSError:
        return frozenset()
    return _read_index(str(index), (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns))


@functools.lru_cache(256)
def _read_index(path: str, _state: tuple[int, ...]) -> frozenset[str]:
    data = Path(path).read_bytes()
    if len(data) < 12 or data[:8] != b"DIRC\0\0\0\2":
        return frozenset()
    found, at, count = [], 12, int.from_bytes(data[8:12], "big")
    for _ in range(count):
        name = data[at + 62 : data.index(b"\0", at + 62)]
        found.append(os.fsdecode(name))
        at += (62 + len(name)) // 8 * 8 + 8
    return frozenset(found)


def _add_around(git: Git, files: Files) -> None:
    """`git add --all` where it would give up a folder or refuse to go on.

    A repository in the workspace is taken for the folder that it is: git would record it as a
    submodule and lose what is in it. A file that became a FIFO, a socket or a device is gone.
    """
    nested: list[str] = []
    special: set[str] = set()
    for path, entry in files.walk():
        inner = any(path.startswith(f"{above}/") for above in nested)
        if entry.kind == "other":
            special.add(path)
        elif entry.kind == "dir" and not inner and _is_repository(files, path):
            nested.append(path)
    tracked = {os.fsdecode(name) for name in git("ls-files", "-z").split(b"\0") if name}
    if gone := special & tracked:
        git("update-index", "--force-remove", "-z", "--stdin", stdin=_lines(gone))
    if nested:
        # Exit code 1 says that none is ignored; git refuses to be told around one that is.
        said = git("check-ignore", "-z", "--stdin", stdin=_lines(nested), most=1)
        nested = [path for path in nested if os.fsencode(path) not in said.split(b"\0")]
    git("add", "--all", "--", ".", *(f":(exclude,literal){path}" for path in nested))
    for folder in nested:
        present = {path for path, entry in files.walk(folder) if entry.kind in ("file", "link")}
        below = {path for path in tracked - gone if path.startswith(f"{folder}/")}
        names = _lines(present | below)
        git("update-index", "--add", "--remove", "-z", "--stdin", stdin=names)


def _is_repository(files: Files, folder: str) -> bool:
    try:
        return files.stat(f"{folder}/.git") is not None
    except ToolError:  # a link out of the workspace
        return True


def _lines(paths: Iterable[str]) -> bytes:
    return b"\0".join(sorted(map(os.fsencode, paths)))


def _git() -> str:
    found = shutil.which("git")
    if found is None:
        raise SandboxError("git is missing on this machine: apt-get install git.")
    return found
