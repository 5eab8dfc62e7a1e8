"""What changed in a container's workspace: the engine says where, this machine's git says what."""

from __future__ import annotations

import os
import posixpath
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from swe_env.errors import ToolError
from swe_env.sandbox.beneath import open_beneath
from swe_env.sandbox.diff import Git, Ran, Run, trusted_git, written
from swe_env.sandbox.docker.engine import Engine
from swe_env.sandbox.docker.served import ContainerFiles, Peeked
from swe_env.sandbox.files import DirFiles
from swe_env.sandbox.running import MOST_CHANNEL, too_large

_RULES = (".gitignore", ".gitattributes")


def changed_paths(engine: Engine, container: str, workdir: str) -> set[str]:
    """Paths under the workspace that differ from the container's image, folders included.

    Relative to the workspace, whose own is empty.
    """
    with engine.doing("list what changed in the sandbox"):
        found = engine.api.diff(container) or []
    prefix = workdir.rstrip("/") + "/"
    below = {row["Path"][len(prefix) :] for row in found if row["Path"].startswith(prefix)}
    return below | {"" for row in found if row["Path"] == workdir}


def diff(base: Path, paths: Iterable[str], files: ContainerFiles) -> str:
    """Git's diff from `base`'s HEAD to the workspace, given a superset of the paths that changed.

    Only the changed files are read; git runs on copies of them here, where nothing that the
    container holds is run or has a say in how git works.

    Raises:
        SandboxError: git failed; says how.
    """
    wanted = {path for path in _named(paths, files) if ".git" not in path.split("/")}
    lost = "" in wanted and not _is_folder(files)
    wanted.discard("")
    if not wanted and not lost:
        return ""
    with tempfile.TemporaryDirectory(prefix="swe-env-diff-", dir=_memory()) as scratch:
        work = Path(scratch, "work")
        for folder in (work, Path(scratch, "objects")):
            folder.mkdir()
        run = _runner(work)
        git = trusted_git(base, worktree=str(work), scratch=scratch, run=run)
        git("read-tree", "HEAD")
        if lost:
            git("read-tree", "--empty")
        else:
            _Copy(git, files, work).take(wanted)
        return written(git)


def _is_folder(files: ContainerFiles) -> bool:
    """Whether the workspace is still there, and no link to elsewhere."""
    try:
        entry = files.stat("")
    except ToolError:
        return False
    return entry is not None and entry.kind == "dir"


def _memory() -> str | None:
    """Where small folders cost nothing, if there is such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None


class _Copy:
    """Brings changed files into an otherwise empty work tree, and from there into the index."""

    def __init__(self, git: Git, files: ContainerFiles, work: Path) -> None:
        self._git = git
        self._files = files
        self._work = work
        self._seen: dict[str, Peeked] = {}
        self._tracked = {os.fsdecode(name) for name in git("ls-files", "-z").split(b"\0") if name}

    def take(self, wanted: set[str]) -> None:
        rules = {path for path in wanted if posixpath.basename(path) in _RULES}
        unchanged = {path for path in self._tracked if posixpath.basename(path) in _RULES} - rules
        self._git("checkout-index", "-f", "-z", "--stdin", stdin=_lines(unchanged))
        root = os.open(self._work, os.O_RDONLY | os.O_DIRECTORY)
        copy = DirFiles(root, str(self._work))
        try:
            for path in sorted(rules):
                self._place(copy, path)
            fresh = wanted - self._tracked
            for path in sorted(wanted - rules - self._ignored(fresh)):
                self._place(copy, path)
        finally:
            copy.close()
            os.close(root)
        present = {path for path, entry in self._seen.items() if entry.kind in ("file", "link")}
        gone = set(self._seen) - present
        solid = {path for path, entry in self._seen.items() if entry.kind != "dir"}
        below = {path for path in self._tracked if not solid.isdisjoint(_parents(path))}
        gone = (gone | below) & self._tracked - present
        self._git("update-index", "--force-remove", "-z", "--stdin", stdin=_lines(gone))
        kept = present - self._ignored(present - self._tracked)
        self._git("update-index", "--add", "--replace", "-z", "--stdin", stdin=_lines(kept))

    def _ignored(self, paths: set[str]) -> set[str]:
        if not paths:
            return set()
        # Exit code 1 says that none of them is ignored.
        said = self._git("check-ignore", "-z", "--no-index", "--stdin", stdin=_lines(paths), most=1)
        return {os.fsdecode(name) for name in said.split(b"\0") if name}

    def _place(self, copy: DirFiles, path: str) -> None:
        try:
            found = self._files.peek(path)
        except ToolError:
            found = Peeked("")
        self._seen[path] = found
        if found.kind not in ("file", "link"):
            return
        try:
            copy.write(path, found.data if found.kind == "file" else b"")
        except ToolError:
            return  # it changed while it was read: one of its folders was just seen as a file
        folder, _, name = path.rpartition("/")
        parent = open_beneath(copy.root, folder, os.O_RDONLY | os.O_DIRECTORY, workdir="/")
        try:
            if found.kind == "file":
                os.chmod(name, 0o755 if found.mode & 0o100 else 0o644, dir_fd=parent)
            else:
                os.unlink(name, dir_fd=parent)
                os.symlink(found.data, os.fsencode(name), dir_fd=parent)
        finally:
            os.close(parent)


def _named(paths: Iterable[str], files: ContainerFiles) -> set[str]:
    """The paths with their true names: engines replace what is not UTF-8."""
    found = set()
    for path in paths:
        if "\ufffd" not in path:
            found.add(path)
            continue
        folder = path.split("\ufffd")[0].rpartition("/")[0]
        try:
            found.update(name for name, _ in files.walk(folder))
        except ToolError:
            continue
    return found


def _parents(path: str) -> set[str]:
    parts = path.split("/")[:-1]
    return {"/".join(parts[: index + 1]) for index in range(len(parts))}


def _lines(paths: Iterable[str]) -> bytes:
    return b"".join(os.fsencode(path) + b"\0" for path in sorted(paths))


def _runner(folder: Path) -> Run:
    def run(argv: Sequence[str], env: Mapping[str, str], stdin: bytes = b"") -> Ran:
        done = subprocess.run(
            argv, cwd=folder, env=dict(env), input=stdin, capture_output=True, check=False
        )
        if len(done.stdout) > MOST_CHANNEL:
            raise too_large()
        return Ran(done.returncode, done.stdout or done.stderr)

    return run
