"""`DirFiles`: file access for sandboxes whose workspace is a folder this process can open."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from swe_env.errors import ToolError
from swe_env.sandbox.base import Entry
from swe_env.sandbox.beneath import OutsideError, open_beneath

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_CHUNK = 1 << 20
DEEPEST = 200
"""Folders within folders that a walk goes into: how deep they go is the agent's to choose."""


_Entries = list[Entry]


class DirFiles:
    """`Files` on a folder descriptor, which stays the caller's to close until `close`.

    No process is started and no call blocks on a FIFO or device. Writes replace the file in one
    step (a reader sees the old bytes or the new) unless it has several names or is reached by a
    link; those are written in place.
    """

    def __init__(self, root: int, workdir: str, *, base: Path | None = None) -> None:
        """`root` is copied; `workdir` is the folder's name in absolute paths."""
        self.base = base
        """The checkout that the workspace began as, where this machine has it."""
        self._root = os.dup(root)
        self._workdir = workdir.rstrip("/")

    @property
    def root(self) -> int:
        """Our descriptor of the folder."""
        return self._root

    def close(self) -> None:
        """Close the descriptor; safe to call twice."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def move_to(self, root: int) -> None:
        """Go on in another folder."""
        self.close()
        self._root = os.dup(root)

    def read(self, path: str, *, limit: int = 16 << 20) -> bytes:
        """See `Files.read`."""
        with self._errors(path):
            fd = self._open(path, _READ)
            try:
                info = os.fstat(fd)
                self._must_be_file(info, path)
                if info.st_size > limit:
                    raise ToolError(
                        f"{path} is too large: {info.st_size:,} bytes, the limit is {limit:,}."
                    )
                data = _read_all(fd, info.st_size, limit)
            finally:
                os.close(fd)
        if len(data) > limit:
            raise ToolError(f"{path} is too large: more than {limit:,} bytes.")
        return data

    def write(self, path: str, data: bytes) -> None:
        """See `Files.write`."""
        with self._errors(path):
            folder, _, name = self._relative(path).rpartition("/")
            if name in ("", ".", ".."):
                raise ToolError(f"{path or '.'} is a folder, not a file.")
            parent = self._make_folders(folder)
            try:
                info = _lstat(parent, name)
                if info is not None and not stat.S_ISLNK(info.st_mode):
                    self._must_be_file(info, path)
                if info is None:
                    _replace(parent, name, data, None)
                elif stat.S_ISREG(info.st_mode) and info.st_nlink == 1:
                    try:
                        _replace(parent, name, data, info)
                    except PermissionError:
                        self._write_in_place(path, data)
                else:
                    self._write_in_place(path, data)
            finally:
                os.close(parent)

    def remove(self, path: str) -> None:
        """See `Files.remove`; a symbolic link is removed itself, not what it leads to."""
        with self._errors(path):
            folder, _, name = self._relative(path).rpartition("/")
            parent = self._open(folder, _FOLDER)
            try:
                if name in ("", ".", "..") or stat.S_ISDIR(
                    os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
                ):
                    raise ToolError(f"{path or '.'} is a folder, not a file.")
                os.unlink(name, dir_fd=parent)
            finally:
                os.close(parent)

    def stat(self, path: str) -> Entry | None:
        """See `Files.stat`."""
        with self._errors(path):
            relative = self._relative(path)
            try:
                fd = self._open(relative, os.O_PATH)
            except (FileNotFoundError, NotADirectoryError):
                return None
            try:
                return entry_of(relative.rpartition("/")[2], os.fstat(fd))
            finally:
                os.close(fd)

    def list(self, path: str = "") -> list[Entry]:
        """See `Files.list`."""
        with self._errors(path):
            return self._entries(path)

    def walk(self, path: str = "") -> Iterator[tuple[str, Entry]]:
        """See `Files.walk`; symbolic links are listed, not followed.

        Folders more than `DEEPEST` levels down, and what is unreadable or gone since it was
        listed, are left out.
        """
        relative = self._relative(path)
        prefix = "/".join(part for part in relative.split("/") if part not in ("", "."))
        below = [(f"{prefix}/" if prefix else "", iter(self.list(path)))]
        while below:
            above, entries = below[-1]
            entry = next(entries, None)
            if entry is None:
                below.pop()
            elif entry.name != ".git":
                name = above + entry.name
                yield name, entry
                if entry.kind == "dir" and len(below) < DEEPEST:
                    with contextlib.suppress(OSError):
                        below.append((f"{name}/", iter(self._entries(name, os.O_NOFOLLOW))))

    def _entries(self, path: str, flags: int = 0) -> _Entries:
        fd = self._open(path, _FOLDER | flags)
        try:
            return _entries(fd)
        finally:
            os.close(fd)

    def _relative(self, path: str) -> str:
        if "\0" in path:
            raise ToolError("A path cannot hold a NUL character.")
        if path.startswith("/"):
            clean = os.path.normpath(path) if ".." in path else path.rstrip("/")
            if clean != self._workdir and not clean.startswith(self._workdir + "/"):
                raise ToolError(
                    f"{path} is outside the workspace: paths are relative, or start with "
                    f"{self._workdir}/."
                )
            return clean[len(self._workdir) + 1 :]
        return path.rstrip("/")

    def _open(self, path: str, flags: int, mode: int = 0) -> int:
        if self._root < 0:
            raise ToolError("The sandbox is closed.")
        return open_beneath(
            self._root, self._relative(path), flags, workdir=self._workdir, mode=mode
        )

    def _make_folders(self, folder: str) -> int:
        try:
            return self._open(folder, _FOLDER)
        except FileNotFoundError:
            above, _, name = folder.rpartition("/")
            parent = self._make_folders(above)
            try:
                os.mkdir(name, 0o755, dir_fd=parent)
            finally:
                os.close(parent)
            return self._open(folder, _FOLDER)

    def _write_in_place(self, path: str, data: bytes) -> None:
        fd = self._open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            self._must_be_file(os.fstat(fd), path)
            os.ftruncate(fd, 0)
            _write_all(fd, data)
        finally:
            os.close(fd)

    @staticmethod
    def _must_be_file(info: os.stat_result, path: str) -> None:
        if stat.S_ISDIR(info.st_mode):
            raise ToolError(f"{path or '.'} is a folder, not a file.")
        if not stat.S_ISREG(info.st_mode):
            raise ToolError(f"{path} is not a regular file.")

    @contextlib.contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except OutsideError as error:
            raise ToolError(f"{path} leads outside the workspace.") from error
        except OSError as error:
            raise ToolError(_sentence(path or ".", error)) from error


def _sentence(path: str, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"There is no {path}."
    if error.errno == errno.ENOTDIR:
        return f"{path} is not a folder, or goes through something that is none."
    if error.errno == errno.ELOOP:
        return f"{path} goes through too many symbolic links."
    if error.errno == errno.ENXIO:
        return f"{path} is not a regular file."
    if error.errno == errno.ENOSPC:
        return f"{path} cannot be written: the sandbox's disk limit is reached."
    return f"{path}: {error.strerror}."


def entry_of(name: str, info: os.stat_result) -> Entry:
    """What `Files` tells of an entry."""
    kind = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}
    return Entry(name, kind.get(stat.S_IFMT(info.st_mode), "other"), info.st_size)


def _entries(fd: int) -> list[Entry]:
    entries = []
    with os.scandir(fd) as found:
        for item in found:
            with contextlib.suppress(FileNotFoundError):  # removed by whoever runs meanwhile
                entries.append(entry_of(item.name, item.stat(follow_symlinks=False)))
    return sorted(entries, key=lambda entry: entry.name)


def _lstat(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _read_all(fd: int, size: int, limit: int) -> bytes:
    data = os.read(fd, size + 1)
    if len(data) == size:
        return data
    parts = [data]
    length = len(data)
    while length <= limit and (part := os.read(fd, _CHUNK)):
        parts.append(part)
        length += len(part)
    return b"".join(parts)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _replace(folder: int, name: str, data: bytes, old: os.stat_result | None) -> None:
    """Write beside the file and rename over it, keeping mode and, where allowed, owner."""
    temporary = f".{name[:200]}.{secrets.token_hex(4)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o644, dir_fd=folder)
    try:
        try:
            _write_all(fd, data)
            if old is not None:
                if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(fd, old.st_uid, old.st_gid)
                os.fchmod(fd, stat.S_IMODE(old.st_mode))
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
