"""Open paths that stay below a folder descriptor: openat2, or a walk where the kernel lacks it."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct

_SYS_OPENAT2 = 437  # the same number on every architecture
_RESOLVE = 0x08 | 0x02  # RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
_HOW = struct.Struct("=QQQ")
_MOST_LINKS = 40
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class OutsideError(OSError):
    """The path leads out of the folder."""


def _openat2(root: int, path: str, flags: int, mode: int) -> int:
    how = _HOW.pack(flags | os.O_CLOEXEC, mode, _RESOLVE)
    fd: int = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_long(root),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_char_p(how),
        ctypes.c_size_t(_HOW.size),
    )
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd


def _supported() -> bool:
    try:
        os.close(_openat2(-100, ".", os.O_PATH, 0))
    except OSError:
        return False
    return True


SUPPORTED = _supported()
"""Whether this kernel (and what confines this process) has openat2."""


def open_beneath(root: int, path: str, flags: int, *, workdir: str, mode: int = 0) -> int:
    """Open `path` below the folder `root`; symbolic links are followed only inside it.

    Args:
        root: descriptor of the folder.
        path: relative; empty for the folder itself.
        flags: as for `os.open`.
        workdir: what absolute symbolic links inside call the folder.
        mode: permissions of a file that is created (needs `mode` ≠ 0 only with O_CREAT).

    Raises:
        OutsideError: the path, or a link on it, leads out.
        OSError: anything else, as from `os.open`.
    """
    if SUPPORTED:
        try:
            return _openat2(root, path or ".", flags, mode)
        except OSError as error:
            # Outside, or an absolute link that may well lead inside, or a race: look closely.
            if error.errno not in (errno.EXDEV, errno.EAGAIN):
                raise
    return _walk(root, path, flags, workdir, mode)


def _walk(root: int, path: str, flags: int, workdir: str, mode: int) -> int:
    """`open_beneath`, one component at a time."""
    todo = [part for part in path.split("/") if part not in ("", ".")][::-1]
    stack = [os.dup(root)]
    links = 0
    try:
        while todo:
            part = todo.pop()
            if part == "..":
                if len(stack) == 1:
                    raise OutsideError(errno.EXDEV, "leads outside the workspace", path)
                os.close(stack.pop())
                continue
            target = _link(stack[-1], part)
            if target is None:
                if not todo:
                    return os.open(
                        part, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=stack[-1]
                    )
                stack.append(os.open(part, _FOLDER, dir_fd=stack[-1]))
                continue
            if not todo and flags & os.O_NOFOLLOW:
                return os.open(part, flags | os.O_CLOEXEC, dir_fd=stack[-1])
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target.startswith("/"):
                target = _inside(target, workdir, path)
                while len(stack) > 1:
                    os.close(stack.pop())
            todo += [piece for piece in target.split("/") if piece not in ("", ".")][::-1]
        return os.open(".", flags | os.O_CLOEXEC, dir_fd=stack[-1])
    finally:
        for fd in stack:
            os.close(fd)


def _link(folder: int, name: str) -> str | None:
    """Where the symbolic link `name` points, or None when it is none (or not there)."""
    try:
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            return os.readlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    return None


def _inside(target: str, workdir: str, path: str) -> str:
    if target == workdir or target.startswith(workdir + "/"):
        return target[len(workdir) :]
    raise OutsideError(errno.EXDEV, "leads outside the workspace", path)
