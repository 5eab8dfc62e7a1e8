"""Which errors say that a disk is full or cannot be written to."""

from __future__ import annotations

import errno
import os

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
