"""Files that a full disk or a power cut leaves whole, and the errors that tell of such a disk."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_WORDS = tuple(os.strerror(number) for number in _NUMBERS)


def refusal(error: BaseException) -> str:
    """The disk's own words in an error, or empty when the disk is not what failed.

    What git, pip or a copy of many files reports has them in its text.

    >>> refusal(OSError(errno.ENOSPC, "No space left on device", "/full/file"))
    'No space left on device'
    >>> refusal(FileNotFoundError(errno.ENOENT, "No such file or directory"))
    ''
    """
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno) if error.errno in _NUMBERS else ""
    return next((words for words in _WORDS if words in str(error)), "")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader or a crash sees the old bytes or the new, nothing between.

    Raises:
        OSError: it could not be written; names it, and what was there before stays.
    """
    part = part_of(path)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error
    _sync(path.parent)


def part_of(path: Path) -> Path:
    """The file that `write_atomically` begins with; a kill may leave it."""
    return path.with_name(f".{path.name}.part")


def sync_folder(folder: Path) -> None:
    """Wait until the files directly in a folder, and then their names, are on the disk.

    Raises:
        OSError: the disk could not take them.
    """
    for path in folder.iterdir():
        if path.is_file():
            _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that syncs no folders
            raise
    finally:
        os.close(descriptor)
