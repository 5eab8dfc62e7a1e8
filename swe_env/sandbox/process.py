"""The `process` sandbox: a private copy of the checkout and no isolation at all."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path

from swe_env.errors import SandboxError
from swe_env.sandbox.base import Sandbox, SandboxSpec, Snapshot
from swe_env.sandbox.client import Keeper
from swe_env.sandbox.keeper.processes import descendants
from swe_env.sandbox.kept import BASE_ENV, KeptSandbox, open_folder


class NoIsolationWarning(RuntimeWarning):
    """Commands run with all the rights of this program."""


_warned = False


class ProcessFactory:
    """Starts `process` sandboxes."""

    def available(self) -> str:
        """Empty: this kind works wherever Python and bash do."""
        return ""

    def __call__(self, spec: SandboxSpec) -> Sandbox:
        """Copy the base to a temporary folder and run commands there."""
        global _warned
        if spec.image:
            raise SandboxError(
                f"The process sandbox cannot run the container image {spec.image!r}: use "
                'sandbox="docker", or give the task a recipe and a source.'
            )
        if not _warned:
            _warned = True
            warnings.warn(
                "The process sandbox does NOT isolate: commands can read, change and send whatever "
                'this user can. Use it only with code you trust, otherwise sandbox="local".',
                NoIsolationWarning,
                stacklevel=2,
            )
        source = open_folder(spec.base)
        try:
            return ProcessSandbox(spec, source)
        finally:
            os.close(source)


class ProcessSandbox(KeptSandbox):
    """A temporary folder; its processes are found and killed, its files removed, at `close`.

    `fork` and `restore` copy files, not processes: the shell starts anew in the same folder.
    """

    kind = "process"

    def __init__(self, spec: SandboxSpec, source: int, cwd: str = "") -> None:
        keeper = _start(source)
        folder = Path(keeper.answer["folder"])
        workdir = str(folder / "testbed")
        super().__init__(
            spec,
            keeper,
            root=keeper.fds[0],
            workdir=workdir,
            env=_environment(spec, folder),
            rlimits={
                "RLIMIT_FSIZE": spec.limits.file_size,
                "RLIMIT_DATA": spec.limits.memory,
                "RLIMIT_CORE": 0,
            },
            cwd=str(Path(workdir, cwd)),
            private={f"{folder}/home": "~", f"{folder}/tmp": "$TMPDIR", f"{folder}": "$TMPDIR/.."},
        )
        self._folder = folder

    def _processes(self) -> set[int]:
        return descendants(self._keeper.pid)

    def _argument(self, text: str) -> str:
        return _outside(self.spec, text)

    def snapshot(self) -> Snapshot:
        """See `Sandbox.snapshot`: a copy of the workspace in a temporary folder of its own."""
        with self._lock:
            self._check()
            return ProcessSnapshot(_start(self._root))

    def restore(self, snapshot: Snapshot) -> None:
        """See `Sandbox.restore`; running processes are ended."""
        if not isinstance(snapshot, ProcessSnapshot):
            raise SandboxError("This snapshot is of another kind of sandbox.")
        with self._lock:
            self._check()
            self._shell.close()
            self._keeper.call({"op": "refill"}, [snapshot.keeper.fds[0]])

    def fork(self) -> Sandbox:
        """See `Sandbox.fork`."""
        with self._lock:
            self._check()
            return ProcessSandbox(self.spec, self._root, self._relative_cwd())

    def _relative_cwd(self) -> str:
        inside = Path(self._shell.cwd).is_relative_to(self.workdir)
        return str(Path(self._shell.cwd).relative_to(self.workdir)) if inside else ""


class ProcessSnapshot:
    """A copied tree, kept by a keeper of its own so that it goes when the program goes."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper

    def discard(self) -> None:
        """Delete the copy; safe to call twice."""
        self.keeper.close()


def _start(source: int) -> Keeper:
    return Keeper({"kind": "process", "parent": tempfile.gettempdir()}, {}, [source])


def _outside(spec: SandboxSpec, text: str) -> str:
    """`text` with the paths of `SandboxSpec.binds` as they are on this machine."""
    for inside, folder in spec.binds.items():
        text = text.replace(inside, str(folder))
    return text


def _environment(spec: SandboxSpec, folder: Path) -> dict[str, str]:
    workdir = str(folder / "testbed")
    own = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), **BASE_ENV}
    return {**own, **spec.variables(workdir, bound=False)}
