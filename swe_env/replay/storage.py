"""Where a buffer's bytes lie: the few operations it needs, here on a local or shared folder.

Names are relative, with forward slashes, so that another place (an fsspec file system) is another
class with these methods and nothing else changes.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections import OrderedDict
from typing import Protocol

from swe_env.errors import ConfigError, ReplayError


class Appender(Protocol):
    """The open end of one file."""

    def append(self, data: bytes, *, durable: bool) -> int:
        """Write all of `data` or nothing; the offset at which it starts.

        When it returns the bytes survive the death of this process, with `durable` that of the
        machine too.

        Raises:
            ReplayError: the bytes could not be written; says why.
        """
        ...

    def close(self) -> None:
        """Close the file; safe to call twice."""
        ...


class Storage(Protocol):
    """A folder of append-only files; safe to call from several threads."""

    url: str

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
        """Create a file to append to; it must not exist."""
        ...

    def close(self) -> None:
        """Free what is held open; the storage stays usable."""
        ...


def open_storage(url: str | os.PathLike[str]) -> Storage:
    """The storage at a path or ``file://`` URL.

    Raises:
        ConfigError: the URL names a kind of file system that buffers cannot lie on.
    """
    text = os.fspath(url)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return LocalStorage(text)
    if scheme in ("file", "local"):
        return LocalStorage(rest)
    raise ConfigError(
        f"A replay buffer cannot lie on {scheme}:// yet: give a folder (a mounted share will do)."
    )


class LocalStorage:
    """A folder of this machine or of a shared file system."""

    _MAX_OPEN = 64

    def __init__(self, path: str) -> None:
        self.url = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111
        os.makedirs(self.url, exist_ok=True)  # noqa: PTH103
        self._open: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def _path(self, name: str) -> str:
        return f"{self.url}/{name}"

    def sizes(self, suffix: str) -> dict[str, int]:
        """Name → size of the files that end in `suffix`, sorted by name."""
        with os.scandir(self.url) as entries:
            found = {e.name: e.stat().st_size for e in entries if e.name.endswith(suffix)}
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
        try:
            with open(temporary, "wb") as file:  # noqa: PTH123
                file.write(data)
            os.replace(temporary, self._path(name))  # noqa: PTH105
        except OSError:
            if os.path.exists(temporary):  # noqa: PTH110
                os.unlink(temporary)  # noqa: PTH108
            raise

    def create(self, name: str) -> Appender:
        """Create a file to append to; it must not exist."""
        return _LocalAppender(self._path(name))

    def close(self) -> None:
        """Close the descriptors kept for reading."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])


class _LocalAppender:
    """One file that this process alone appends to."""

    def __init__(self, path: str) -> None:
        self._path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags, 0o644)
        except OSError as error:
            raise ReplayError(
                f"The shard {path} could not be created: {error.strerror}."
            ) from error
        self._end = 0

    def append(self, data: bytes, *, durable: bool) -> int:
        """Write all of `data` or nothing (see `Appender`)."""
        start, view = self._end, memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
            if durable:
                os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, start)
            raise ReplayError(
                f"A record could not be appended to {self._path}: {error.strerror}; "
                "nothing of it was kept."
            ) from error
        self._end = start + len(data)
        return start

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
