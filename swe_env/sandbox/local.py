"""The `local` sandbox: Linux namespaces and an overlay, without a daemon."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from swe_env.errors import SandboxError
from swe_env.sandbox.base import WORKDIR, Sandbox, SandboxSpec, Snapshot
from swe_env.sandbox.client import Keeper
from swe_env.sandbox.kept import BASE_ENV, KeptSandbox
from swe_env.sandbox.layered import LayeredFiles

_INSTALL = "apt-get install bubblewrap"


class LocalFactory:
    """Starts `local` sandboxes."""

    def available(self) -> str:
        """Empty when a sandbox was seen to start on this machine, else what to do."""
        if not sys.platform.startswith("linux"):
            return 'The local sandbox needs Linux: use sandbox="process" with code you trust.'
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            return f"The local sandbox needs bubblewrap, which is not installed: {_INSTALL}."
        return _probe(bwrap)

    def __call__(self, spec: SandboxSpec) -> Sandbox:
        """Start one on an overlay over `spec.base`."""
        if spec.image:
            raise SandboxError(
                f"The local sandbox cannot run the container image {spec.image!r}: use "
                'sandbox="docker", or give the task a recipe and a source.'
            )
        if shutil.which("bwrap") is None:
            raise SandboxError(self.available())
        return LocalSandbox(spec)


_proven: set[str] = set()
"""Programs with which a sandbox was seen to start; a failure may be a passing one."""


def _probe(bwrap: str) -> str:
    """Start and end a sandbox, until that was seen to work once."""
    if bwrap in _proven:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            LocalSandbox(SandboxSpec(base=Path(folder))).close()
        except SandboxError as error:
            return (
                f"The local sandbox does not start with {bwrap}: {error} "
                "It needs user namespaces and overlayfs (Linux 5.12, as an ordinary user 6.6)."
            )
    _proven.add(bwrap)
    return ""


class LocalSandbox(KeptSandbox):
    """Commands see the checkout at ``/testbed``, a read-only system and nothing else of this host.

    `fork` and `restore` copy files, not processes: the shell starts anew in the same folder, and
    `restore` ends what is running.
    """

    kind = "local"

    def __init__(self, spec: SandboxSpec, *, layer: int | None = None, cwd: str = WORKDIR) -> None:
        keeper = _start(spec, layer)
        super().__init__(
            spec,
            keeper,
            root=keeper.fds[0],
            workdir=WORKDIR,
            env=_environment(spec),
            rlimits=_rlimits(spec, keeper),
            cwd=cwd,
        )
        self._watch()

    def snapshot(self) -> Snapshot:
        """See `Sandbox.snapshot`: a copy of the overlay's upper layer, in memory."""
        with self._lock:
            self._check()
            _, fds = self._keeper.call({"op": "snapshot"})
            return LocalSnapshot(fds[0])

    def restore(self, snapshot: Snapshot) -> None:
        """See `Sandbox.restore`; running processes are ended."""
        if not isinstance(snapshot, LocalSnapshot):
            raise SandboxError("This snapshot is of another kind of sandbox.")
        with self._lock:
            self._check()
            keeper = _start(self.spec, snapshot.layer)
            self._unwatch()
            self._move_to(keeper, keeper.fds[0])
            self._layered.use_upper(keeper.fds[1])
            self._watch()

    def fork(self) -> Sandbox:
        """See `Sandbox.fork`."""
        with self._lock:
            self._check()
            return LocalSandbox(self.spec, layer=self._keeper.fds[1], cwd=self._shell.cwd)

    def close(self) -> None:
        """See `Sandbox.close`."""
        with self._lock:
            self._unwatch()
            super().close()

    def _open_files(self) -> LayeredFiles:
        base, upper = self.spec.base.absolute(), self._keeper.fds[1]
        self._layered = LayeredFiles(self._root, self.workdir, base=base, upper=upper)
        return self._layered

    def _processes(self) -> set[int]:
        with os.scandir(self._keeper.fds[2]) as entries:
            return {int(entry.name) for entry in entries if entry.name.isdigit()}

    def _watch(self) -> None:
        """Open the counters that tell which limit struck."""
        self._events: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        for name, path in self._keeper.answer["events"].items():
            with contextlib.suppress(OSError):
                self._events[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self._seen[name] = _count(self._events[name])

    def _unwatch(self) -> None:
        for fd in self._events.values():
            os.close(fd)
        self._events = {}

    def _struck(self, code: int, output: str) -> str:
        for name, fd in self._events.items():
            count = _count(fd)
            if count > self._seen[name]:
                self._seen[name] = count
                return name
        room = os.fstatvfs(self._root)
        if 0 in (room.f_bavail, room.f_favail):
            return "disk"
        struck = super()._struck(code, output)
        return "" if struck in self._events else struck  # a counter knows better


class LocalSnapshot:
    """A detached file system with the upper layer; it goes with its descriptor."""

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def discard(self) -> None:
        """Free it; safe to call twice."""
        if self.layer >= 0:
            os.close(self.layer)
            self.layer = -1


def _start(spec: SandboxSpec, layer: int | None) -> Keeper:
    limits = spec.limits
    prepared = {
        "kind": "local",
        "bwrap": shutil.which("bwrap"),
        "workdir": WORKDIR,
        "network": spec.network,
        "disk": limits.disk,
        "memory": limits.memory,
        "processes": limits.processes,
    }
    base = str(spec.base.absolute())
    binds = {inside: str(folder.absolute()) for inside, folder in spec.binds.items()}
    request = {
        "base": base,
        "workdir": WORKDIR,
        "binds": binds,
        "hidden": list(spec.hidden),
        # A keeper prepared some time ago may see another file system at the same path.
        "identities": {path: _identity(path) for path in (base, *binds.values())},
    }
    return Keeper(prepared, request, [] if layer is None else [layer], spare=True)


def _identity(path: str) -> tuple[int, int]:
    try:
        info = os.stat(path)  # noqa: PTH116 - the path is a string for the keeper's sake
    except OSError as error:
        raise SandboxError(f"{path} cannot be used in a sandbox: {error.strerror}.") from error
    return info.st_dev, info.st_ino


def _environment(spec: SandboxSpec) -> dict[str, str]:
    return {**BASE_ENV, "HOME": "/root", "TMPDIR": "/tmp", **spec.variables(WORKDIR)}


def _rlimits(spec: SandboxSpec, keeper: Keeper) -> dict[str, int]:
    limits = {"RLIMIT_FSIZE": spec.limits.file_size, "RLIMIT_CORE": 0}
    # Without cgroups the nearest there is: each process's own memory, all processes of the user.
    if "memory" not in keeper.answer["events"]:
        limits["RLIMIT_DATA"] = spec.limits.memory
    if "processes" not in keeper.answer["events"]:
        limits["RLIMIT_NPROC"] = spec.limits.processes
    return limits


def _count(fd: int) -> int:
    """How often the limit struck, from a cgroup's events file."""
    words: Sequence[bytes] = os.pread(fd, 4096, 0).split()
    pairs = dict(zip(words[::2], words[1::2], strict=False))
    return int(pairs.get(b"oom_kill", pairs.get(b"max", b"0")))
