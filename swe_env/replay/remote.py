"""A buffer's bytes on an fsspec file system (``memory://``, ``s3://``, ``gs://``, …).

Object stores cannot append to a file, so every `append` there puts a file of its own and `extend`
one file for many records; `swe buffer compact` joins them. A put is whole or not at all, so no
record is ever torn; no file changes once it is there, so none needs a lock.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import Any

import fsspec

from swe_env.errors import ConfigError, ReplayError
from swe_env.replay.storage import Appender, Claim


class RemoteStorage:
    """A folder of an fsspec file system."""

    appendable = False

    def __init__(self, url: str) -> None:
        scheme = url.partition("://")[0]
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ConfigError(
                f"A replay buffer cannot lie on {scheme}://: {_sentence(error)}."
            ) from error
        self._root = root.rstrip("/")
        self.url = url.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def exists(self) -> bool:
        """Always: a store has no empty folders."""
        return True

    def sizes(self, suffix: str) -> dict[str, int]:
        """Name → size of the files that end in `suffix`, sorted by name."""
        self._fs.invalidate_cache(self._root)
        try:
            listed: list[dict[str, Any]] = self._fs.ls(self._root, detail=True)
        except FileNotFoundError:
            return {}
        named = {item["name"].rpartition("/")[2]: int(item["size"] or 0) for item in listed}
        return {name: named[name] for name in sorted(named) if name.endswith(suffix)}

    def read(self, name: str, offset: int, length: int) -> bytes:
        """That part of a file; shorter at its end."""
        data: bytes = self._fs.cat_file(self._path(name), start=offset, end=offset + length)
        return data

    def load(self, name: str) -> bytes | None:
        """A whole file, or None when there is none."""
        try:
            data: bytes = self._fs.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        return data

    def replace(self, name: str, data: bytes) -> None:
        """Write a whole file at once: a reader sees the old bytes or the new."""
        self._fs.pipe_file(self._path(name), data)

    def create(self, name: str) -> Appender:
        """A file to put; it is there once something was appended."""
        return _Put(self, name)

    def scratch(self) -> str:
        """Path of a temporary file of this machine."""
        descriptor, path = tempfile.mkstemp(prefix="swe-buffer-")
        os.close(descriptor)
        return path

    def publish(self, name: str, path: str) -> None:
        """Put a finished file of this machine under `name`, then delete it here."""
        self._fs.put_file(path, self._path(name))
        os.unlink(path)  # noqa: PTH108

    def sweep(self) -> None:
        """Nothing is ever half written."""

    def remove(self, name: str) -> None:
        """Delete a file; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def claim(self, name: str) -> Claim | None:  # noqa: ARG002
        """Always: what is there no longer changes."""
        return _NoLock()

    def close(self) -> None:
        """Nothing is held open."""


class _Put:
    """One file, put whole by its only `append`."""

    def __init__(self, storage: RemoteStorage, name: str) -> None:
        self._storage = storage
        self._name = name

    def append(self, data: bytes) -> int:
        """Put all of `data` or nothing."""
        try:
            self._storage.replace(self._name, data)
        except Exception as error:  # every file system has errors of its own
            raise ReplayError(
                f"{self._storage.url}/{self._name} could not be written: {_sentence(error)}."
            ) from error
        return 0

    def sync(self) -> None:
        """The store promises that already."""

    def close(self) -> None:
        """Nothing is held open."""


class _NoLock:
    def close(self) -> None:
        """Nothing is held."""


def _sentence(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
