"""The keeper's side of `process`: a private copy of the checkout, and every process below it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from swe_env.sandbox.keeper import kernel
from swe_env.sandbox.keeper.layers import copy_tree
from swe_env.sandbox.keeper.processes import interrupt_all, kill_all, kill_strays

PREFIX = "swe-env-"


class Plain:
    """A temporary folder that lives as long as its keeper."""

    def __init__(self, request: dict[str, Any]) -> None:
        # Whatever is orphaned below becomes a child of the keeper: a daemon cannot get away.
        kernel.adopt_orphans()
        parent = Path(request["parent"])
        sweep(parent)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent))
        lock = os.open(self.folder / ".alive", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            for name in ("testbed", "home", "tmp", "scratch"):
                (self.folder / name).mkdir()
            self.root = os.open(self.folder / "testbed", os.O_RDONLY | os.O_DIRECTORY)
        except BaseException:
            self.teardown()
            raise

    def begin(self, request: dict[str, Any], fds: list[int]) -> None:
        """Fill the workspace with a copy of the folder behind ``fds[0]``."""
        del request
        copy_tree(fds[0], self.root)
        os.close(fds[0])

    def describe(self) -> tuple[dict[str, Any], list[int]]:
        """What the library is told once the workspace stands."""
        answer = {
            "folder": str(self.folder),
            "worktree": str(self.folder / "testbed"),
            "scratch": str(self.folder / "scratch"),
        }
        return answer, [self.root]

    def watched(self) -> list[int]:
        """Descriptors whose readiness means that the sandbox died: none here."""
        return []

    def kill(self, spared: list[int]) -> None:
        """Kill every process below the keeper, apart from `spared` and theirs."""
        kill_all(spared, under=os.getpid())

    def interrupt(self, spared: list[int]) -> None:
        """Send SIGINT to every process below the keeper, apart from `spared` and theirs."""
        interrupt_all(spared, under=os.getpid())

    def scratch(self) -> Path:
        """Empty the private folder; where it is."""
        folder = self.folder / "scratch"
        remove(folder)
        (folder / "objects").mkdir(parents=True)
        return folder

    def snapshot(self) -> int:
        """Not kept here: a snapshot of a plain folder is a keeper of its own."""
        raise OSError("a plain workspace is copied by starting another keeper on it")

    def refill(self, source: int) -> None:
        """Replace the workspace's contents by a copy of folder `source`; processes are ended."""
        self.kill([])
        for path in (self.folder / "testbed").iterdir():
            if path.is_dir() and not path.is_symlink():
                remove(path)
            else:
                path.unlink()
        copy_tree(source, self.root)

    def teardown(self) -> None:
        """Leave no process and no file."""
        kill_all((), under=os.getpid())
        remove(self.folder)

    def tidy(self) -> None:
        """Nothing is left by then."""


def sweep(parent: Path) -> None:
    """Remove folders whose keeper was killed before it could."""
    for folder in parent.glob(f"{PREFIX}*"):
        # A living keeper may not have locked its folder yet; the lock is what tells when the
        # number belongs to another machine's or container's process.
        if Path("/proc", folder.name.removeprefix(PREFIX).split("-")[0]).exists():
            continue
        with contextlib.suppress(OSError):
            lock = os.open(folder / ".alive", os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                kill_strays(folder)
                remove(folder)
            finally:
                os.close(lock)


def remove(folder: Path) -> None:
    """Delete a tree, folders inside it without write permission included."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        for path, names, _ in os.walk(folder):
            for inner in (Path(path), *(Path(path, name) for name in names)):
                if not inner.is_symlink():
                    inner.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)
