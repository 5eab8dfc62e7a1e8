"""Start a command as a child of a helper, and report how it ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import struct
from typing import Any

STATUS = struct.Struct("=i")
"""What arrives on a command's status descriptor: exit code, or minus the signal's number."""
_OUT_OF_THE_WAY = 200
_DEFAULT = (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)
"""Ignored by the helpers or by Python, which a command must not inherit."""


def spawn(request: dict[str, Any], fds: list[int]) -> None:
    """Fork a watcher that runs a request beside the sandbox and reports how it ended."""
    try:
        forked = os.fork()
    except OSError as error:
        _refuse(request, fds, 126, f"{request['argv'][0]}: {error.strerror}")
        return
    if forked:
        return
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # The keeper's own descriptors must not outlive it here: their end is what others wait for.
        close_others(fds)
        child = start(request, fds)
        for fd in fds[1:]:
            os.close(fd)
        if child is not None:
            report(child, fds[0])
    finally:
        os._exit(0)


def start(request: dict[str, Any], fds: list[int]) -> int | None:
    """Start the request's ``argv`` as a child; its pid, or None when that failed and was reported.

    ``request["targets"]`` lists, as pairs, which number the command shall see for which of
    ``fds[1:]``; ``fds[0]`` gets the exit status. The limits and the folder become this process's
    own first, so that nothing is left to do in between and the child need not be a forked copy.
    """
    inherited = fds[1:]
    env, argv = request["env"], request["argv"]
    # Moved up, so that none is overwritten before it has its place.
    given = {to: fcntl.fcntl(inherited[at], fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)
             for to, at in request["targets"]}  # fmt: skip
    try:
        for name, value in request["rlimits"].items():
            _limit(getattr(resource, name), value)
        failed = _change_folder(request["cwd"])
        if not failed:
            os.environ["PATH"] = env.get("PATH", os.defpath)  # where posix_spawnp looks
            pid: int = os.posix_spawnp(
                argv[0],
                argv,
                env,
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in given.items()],
                setsid=True,
                setsigdef=_DEFAULT,
            )
            return pid
    except (FileNotFoundError, NotADirectoryError):
        failed = 127, f"{argv[0]}: command not found"
    except OSError as error:
        failed = 126, f"{argv[0]}: {error.strerror}"
    except ValueError as error:  # what no program can be given: a NUL, half a surrogate pair
        failed = 126, f"{argv[0]}: {error}"
    finally:
        for fd in given.values():
            os.close(fd)
    _refuse(request, fds, *failed)
    return None


def _refuse(request: dict[str, Any], fds: list[int], code: int, message: str) -> None:
    """Report that a request was not started: an exit code, and why on its standard error."""
    status, *inherited = fds
    with contextlib.suppress(OSError):
        os.write(_errors(request, inherited), f"{message}\n".encode("utf-8", "replace"))
        os.write(status, STATUS.pack(code))


def report(child: int, status: int) -> None:
    """Wait for a child and write its exit status."""
    _, result = os.waitpid(child, 0)
    with contextlib.suppress(OSError):  # nobody may want to know any more
        os.write(status, STATUS.pack(os.waitstatus_to_exitcode(result)))


def _errors(request: dict[str, Any], inherited: list[int]) -> int:
    """Which of ours is the command's standard error."""
    targets: list[tuple[int, int]] = request["targets"]
    return next(inherited[at] for to, at in targets if to == 2)


def _change_folder(choices: list[str]) -> tuple[int, str] | None:
    """Go to the first of these folders that still exists; the failure if none does."""
    for folder in choices:
        try:
            os.chdir(folder)
        except OSError as error:
            failed = 127, f"{folder}: {error.strerror}"
        else:
            return None
    return failed


def close_others(kept: list[int]) -> None:
    """Close every descriptor from 3 up but these."""
    floor = 3
    for fd in sorted(kept):
        # An empty range is not harmless: closerange(0, 0) closes everything.
        if fd > floor:
            os.closerange(floor, fd)
        floor = max(floor, fd + 1)
    os.closerange(floor, 1 << 20)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))
