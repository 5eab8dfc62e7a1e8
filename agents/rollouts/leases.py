"""Claims on attempts, so that runs over one folder never do the same attempt twice.

A claim is a file made with O_EXCL whose time is renewed while its run lives. One that was not
renewed for `stale_after` seconds, or whose process is known to be dead (same machine, same boot),
is taken over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

log = logging.getLogger(__name__)


class Leases:
    """The leases one run holds in a job's folder; safe to use from several threads."""

    def __init__(self, folder: Path, *, stale_after: float = 60.0) -> None:
        self._lock_path = folder / ".leases.lock"
        self._mine = threading.Lock()
        """Threads of one run wait here: FileLock looks every 50 ms only."""
        self._stale_after = stale_after
        self._token = f"{_process(os.getpid())} {uuid.uuid4().hex}"
        self._held: set[Path] = set()
        self._closed = threading.Event()
        self._beat = threading.Thread(target=self._renew, name="lease-heartbeat", daemon=True)
        self._beat.start()

    def claim(self, path: Path) -> bool:
        """Take the lease at `path`; False when a living run holds it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return self._take_over(path)
        with os.fdopen(descriptor, "w") as file:
            file.write(self._token)
        self._held.add(path)
        return True

    @contextlib.contextmanager
    def committing(self, path: Path) -> Iterator[bool]:
        """Whether the lease is still ours; nobody can take it over while the block runs."""
        with self.locked():
            yield _read(path) == self._token

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """While the block runs, no run over the folder commits, releases or takes over."""
        with self._mine, FileLock(self._lock_path):
            yield

    def release(self, path: Path) -> None:
        """Give a lease back."""
        self._held.discard(path)
        with self.locked():
            if _read(path) == self._token:
                path.unlink()

    def close(self) -> None:
        """Stop renewing and give everything back."""
        self._closed.set()
        self._beat.join()
        for path in list(self._held):
            self.release(path)

    def _take_over(self, path: Path) -> bool:
        if not self._stale(path):
            return False
        with self.locked():
            if not self._stale(path):
                return False
            log.info("Taking over the attempt in %s from a run that died.", path.parent)
            fresh = path.with_name(f".lease.{uuid.uuid4().hex[:8]}")
            fresh.write_text(self._token)
            fresh.replace(path)
        self._held.add(path)
        return True

    def _stale(self, path: Path) -> bool:
        try:
            age = self._now() - path.stat().st_mtime
        except FileNotFoundError:
            return False  # just released: the next round finds out what came of it
        return age > self._stale_after or _is_dead(_read(path).partition(" ")[0])

    def _now(self) -> float:
        """The time by the clock that stamps the leases: the file system's, maybe not ours."""
        self._lock_path.touch()
        return self._lock_path.stat().st_mtime

    def _renew(self) -> None:
        while not self._closed.wait(self._stale_after / 4):
            for path in list(self._held):
                try:
                    os.utime(path)
                except FileNotFoundError:
                    pass  # just released
                except OSError as error:  # a network file system's bad moment
                    log.warning("The lease %s was not renewed (%s).", path, error.strerror)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _process(pid: int) -> str:
    """``boot|namespace|pid|start``, which no other process ever has; empty where /proc has none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink().name
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
    return f"{boot}|{namespace}|{pid}|{started}"


def _is_dead(owner: str) -> bool:
    """Whether `owner` ran in this machine's boot and process namespace and is no more."""
    parts, mine = owner.split("|"), _process(os.getpid()).split("|")
    if len(parts) != 4 or len(mine) != 4 or parts[:2] != mine[:2]:
        return False
    return _process(int(parts[2])) != owner
