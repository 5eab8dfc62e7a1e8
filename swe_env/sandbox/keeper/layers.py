"""Copy a folder tree, an overlay's upper layer included, descriptor by descriptor."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

_FICLONE = 0x40049409
_OVERLAY = ("trusted.overlay.", "user.overlay.")


def copy_tree(source: int, target: int) -> None:
    """Copy what is in folder descriptor `source` into `target`.

    Kept: contents (shared blocks where the file system can), modes, times, owners where allowed,
    symbolic links, FIFOs, overlay whiteouts and their extended attributes. Hard links become
    files of their own; sockets and devices are left out.
    """
    with os.scandir(source) as entries:
        for entry in entries:
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(info.st_mode):
                _copy_file(source, target, entry.name, info)
            elif stat.S_ISDIR(info.st_mode):
                _copy_folder(source, target, entry.name, info)
            elif stat.S_ISLNK(info.st_mode):
                os.symlink(os.readlink(entry.name, dir_fd=source), entry.name, dir_fd=target)
                _stamp_link(target, entry.name, info)
            elif stat.S_ISFIFO(info.st_mode):
                os.mkfifo(entry.name, stat.S_IMODE(info.st_mode), dir_fd=target)
            elif stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
                os.mknod(entry.name, stat.S_IFCHR, 0, dir_fd=target)


def _copy_folder(source: int, target: int, name: str, info: os.stat_result) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    inner = os.open(name, flags, dir_fd=source)
    try:
        os.mkdir(name, 0o700, dir_fd=target)
        made = os.open(name, flags, dir_fd=target)
        try:
            copy_tree(inner, made)
            copy_meta(inner, made, info)
        finally:
            os.close(made)
    finally:
        os.close(inner)


def _copy_file(source: int, target: int, name: str, info: os.stat_result) -> None:
    old = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=source)
    try:
        new = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=target)
        try:
            if info.st_size:
                copy_data(old, new, info.st_size)
            copy_meta(old, new, info)
        finally:
            os.close(new)
    finally:
        os.close(old)


def copy_data(old: int, new: int, size: int) -> None:
    """Copy `size` bytes, sharing blocks where the file system can."""
    if size >= 65536:
        with contextlib.suppress(OSError):
            fcntl.ioctl(new, _FICLONE, old)
            return
    try:
        while size > 0 and (done := os.copy_file_range(old, new, size)):
            size -= done
        return
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    while part := os.read(old, 1 << 20):
        os.write(new, part)


def copy_meta(old: int, new: int, info: os.stat_result) -> None:
    """Give `new` the owner, mode, overlay attributes and times of `old`."""
    if (info.st_uid, info.st_gid) != (os.geteuid(), os.getegid()):
        with contextlib.suppress(PermissionError, OSError):
            os.fchown(new, info.st_uid, info.st_gid)
    os.fchmod(new, stat.S_IMODE(info.st_mode))
    for name in os.listxattr(old):
        # An overlay refuses two files that say they come from the same one of its lower layer, and
        # that is what names of one file become.
        twin = info.st_nlink > 1 and stat.S_ISREG(info.st_mode) and name.endswith(".origin")
        if name.startswith(_OVERLAY) and not twin:
            os.setxattr(new, name, os.getxattr(old, name))
    os.utime(new, ns=(info.st_atime_ns, info.st_mtime_ns))


def _stamp_link(target: int, name: str, info: os.stat_result) -> None:
    times = (info.st_atime_ns, info.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)
