"""Where a buffer's bytes lie: the few operations it needs, here on a local or shared folder.

Names are relative, without folders. `swe_env.replay.remote` has the same operations on an fsspec
file system.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import threading
import time
import uuid
from collections import OrderedDict
from typing import Protocol

from swe_env.errors import ReplayError

_STALE = 3600.0
"""Seconds after which an unfinished file's writer is taken for dead."""
_UNFINISHED = re.compile(r"\.(new|index|damaged-.+\.bin)\.[0-9a-f]{8}")
"""Names of unfinished files, as `LocalStorage.scratch` and `replace` give them."""


class Appender(Protocol):
    """The open end of one file."""

    def append(self, data: bytes) -> int:
        """Write all of `data` or nothing; the offset at which it starts.

        When it returns the bytes survive the death of this process.

        Raises:
            ReplayError: the bytes could not be written; says why.
            OSError: the file is lost: nothing can be appended to it any more.
        """
        ...

    def sync(self) -> None:
        """Wait until what was appended survives the death of the machine too.

        Raises:
            OSError: the disk does not say so; what was appended since the last call may be lost.
        """
        ...

    def close(self) -> None:
        """Close the file; safe to call twice."""
        ...


class Storage(Protocol):
    """A folder of append-only files; safe to call from several threads."""

    url: str
    appendable: bool
    """Whether an `Appender` takes more than one `append` (object stores put whole files)."""

    def exists(self) -> bool:
        """Whether the folder is there; a store without folders says yes."""
        ...

    def sizes(self, suffix: str) -> dict[str, int]:
        """Name → size of the files that end in `suffix`, sorted by name."""
        ...

    def read(self, name: str, offset: int, length: int) -> bytes:
        """That part of a file; shorter at its end."""
        ...

    def load(self, name: str) -> bytes | None:
        """A whole file, or None when there is none."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Write a whole file at once: a reader sees the old bytes or the new."""
        ...

    def create(self, name: str) -> Appender:
        """Create a file to append to; it must not exist.

        Raises:
            ReplayError: it could not be created; says why.
        """
        ...

    def scratch(self) -> str:
        """Path on this machine for a file that `publish` will move in."""
        ...

    def publish(self, name: str, path: str) -> None:
        """Move a finished file of this machine in under `name`: readers see all of it or none."""
        ...

    def sweep(self) -> None:
        """Delete what processes killed long ago left half written."""
        ...

    def remove(self, name: str) -> None:
        """Delete a file; one that is gone already is no error."""
        ...

    def claim(self, name: str) -> Claim | None:
        """The sole right to rewrite a file, or None while somebody appends to it or has the right.

        Where a file system has no locks nobody gets it; an object store's files never change, so
        there everybody does.

        Raises:
            OSError: the file cannot be opened.
        """
        ...

    def close(self) -> None:
        """Free what is held open; the storage stays usable."""
        ...


class Claim(Protocol):
    """The sole right to rewrite a file, until it is closed."""

    def close(self) -> None:
        """Give the right up; safe to call twice."""
        ...


def open_storage(url: str | os.PathLike[str]) -> Storage:
    """The storage at a path, a ``file://`` URL or one of another fsspec file system.

    Raises:
        ConfigError: the URL names a file system that is unknown or not installed.
    """
    text = os.fspath(url)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return LocalStorage(text)
    if scheme in ("file", "local"):
        return LocalStorage(rest)
    from swe_env.replay.remote import RemoteStorage

    return RemoteStorage(text)


class LocalStorage:
    """A folder of this machine or of a shared file system."""

    appendable = True
    _MAX_OPEN = 64

    def __init__(self, path: str) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()
        self.url = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111
        self._lock = threading.Lock()

    def _path(self, name: str) -> str:
        return f"{self.url}/{name}"

    def exists(self) -> bool:
        """Whether the folder is there."""
        return os.path.isdir(self.url)  # noqa: PTH112

    def sizes(self, suffix: str) -> dict[str, int]:
        """Name → size of the files that end in `suffix`, sorted by name."""
        found = {}
        try:
            with os.scandir(self.url) as entries:
                for entry in entries:
                    if entry.name.endswith(suffix) and not entry.name.startswith("."):
                        with contextlib.suppress(FileNotFoundError):  # deleted by a compaction
                            found[entry.name] = entry.stat().st_size
        except FileNotFoundError:
            return {}
        return dict(sorted(found.items()))

    def read(self, name: str, offset: int, length: int) -> bytes:
        """That part of a file; shorter at its end."""
        with self._lock:  # held while reading, so that no other thread closes the descriptor
            descriptor = self._open.pop(name, None)
            if descriptor is None:
                descriptor = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
            self._open[name] = descriptor
            if len(self._open) > self._MAX_OPEN:
                os.close(self._open.popitem(last=False)[1])
            return os.pread(descriptor, length, offset)

    def load(self, name: str) -> bytes | None:
        """A whole file, or None when there is none."""
        try:
            with open(self._path(name), "rb") as file:  # noqa: PTH123
                return file.read()
        except FileNotFoundError:
            return None

    def replace(self, name: str, data: bytes) -> None:
        """Write a whole file at once: a reader sees the old bytes or the new."""
        temporary = self._path(f".{name}.{uuid.uuid4().hex[:8]}")
        os.makedirs(self.url, exist_ok=True)  # noqa: PTH103
        try:
            with open(temporary, "wb") as file:  # noqa: PTH123
                file.write(data)
            os.replace(temporary, self._path(name))  # noqa: PTH105
        except OSError:
            _unlink(temporary)
            raise

    def create(self, name: str) -> Appender:
        """Create a file to append to; it must not exist."""
        path = self._path(name)
        try:
            os.makedirs(self.url, exist_ok=True)  # noqa: PTH103
            return _LocalAppender(path)
        except OSError as error:
            raise ReplayError(
                f"The shard {path} could not be created: {error.strerror}."
            ) from error

    def scratch(self) -> str:
        """Path in the folder, hidden from readers, for a file that `publish` will move in."""
        os.makedirs(self.url, exist_ok=True)  # noqa: PTH103
        return self._path(f".new.{uuid.uuid4().hex[:8]}")

    def publish(self, name: str, path: str) -> None:
        """Move a finished file in under `name`, on the disk before its name is."""
        with open(path, "rb") as file:  # noqa: PTH123
            os.fsync(file.fileno())
        os.replace(path, self._path(name))  # noqa: PTH105
        _sync_folder(self.url)

    def sweep(self) -> None:
        """Delete unfinished files of ours that nobody has written to for an hour."""
        with os.scandir(self.url) as entries:
            old = [e.path for e in entries if _UNFINISHED.fullmatch(e.name) and _is_old(e)]
        for path in old:
            _unlink(path)

    def remove(self, name: str) -> None:
        """Delete a file; one that is gone already is no error."""
        _unlink(self._path(name))

    def claim(self, name: str) -> Claim | None:
        """The sole right to rewrite a file, by a lock that dies with its process."""
        return _FileClaim.of(self._path(name))

    def close(self) -> None:
        """Close the descriptors kept for reading."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        while self._open:  # of a buffer that was dropped without being closed
            os.close(self._open.popitem()[1])


class _LocalAppender:
    """One file that this process alone appends to, locked so that nobody rewrites it meanwhile."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o644)
        with contextlib.suppress(OSError):  # no locks here: then `claim` gives nobody the right
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._end = 0
        self._named = False
        if not _is_at(self._descriptor, path):
            self.close()
            raise ReplayError(f"The shard {path} was deleted while it was created: try again.")

    def append(self, data: bytes) -> int:
        """Write all of `data` or nothing (see `Appender`)."""
        start, view = self._end, memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
            gone = not _is_at(self._descriptor, self._path)
        except BaseException as error:  # Ctrl-C between two writes must not leave half a record
            os.ftruncate(self._descriptor, start)
            if not isinstance(error, OSError):
                raise
            raise ReplayError(
                f"A record could not be appended to {self._path}: {error.strerror}; "
                "nothing of it was kept."
            ) from error
        if gone:
            os.ftruncate(self._descriptor, start)
            raise FileNotFoundError(errno.ENOENT, "it was deleted or moved", self._path)
        self._end = start + len(data)
        return start

    def sync(self) -> None:
        """Wait for the disk: the bytes, and once the file's name in its folder."""
        os.fsync(self._descriptor)
        if not self._named:
            _sync_folder(os.path.dirname(self._path))  # noqa: PTH120
            self._named = True

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


class _FileClaim:
    """A lock on one file, held until it is closed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def of(cls, path: str) -> _FileClaim | None:
        """The lock, or None when another process has it or the file is gone.

        Raises:
            OSError: the file cannot be opened (too many are).
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        if not _is_at(descriptor, path):
            os.close(descriptor)
            return None
        return cls(descriptor)

    def close(self) -> None:
        """Give the right up; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _is_at(descriptor: int, path: str) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))  # noqa: PTH116
    except FileNotFoundError:
        return False


def _is_old(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file() and entry.stat().st_mtime < time.time() - _STALE
    except FileNotFoundError:
        return False


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108
