"""Start one command as a child, from a process that may fork, and report how it ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import struct
from collections.abc import Callable
from typing import Any

STATUS = struct.Struct("=i")
"""What arrives on a command's status descriptor: exit code, or minus the signal's number."""
_OUT_OF_THE_WAY = 200


def spawn(request: dict[str, Any], fds: list[int], enter: Callable[[], None]) -> None:
    """Fork a watcher that runs the request's ``argv`` and writes its exit status to ``fds[0]``.

    ``request["targets"]`` lists, as pairs, which number the command shall see for which of the
    other `fds`. `enter` is called in the watcher and moves it into the sandbox's namespaces, so
    that the command it forks next is born inside.
    """
    if os.fork():
        return
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        status, *inherited = fds
        if not request.get("outside"):
            enter()
        # The keeper's own descriptors must not outlive it here: their end is what others wait for.
        _close_others(fds)
        child = os.fork()
        if child == 0:
            _become(request, inherited)
        for fd in inherited:
            os.close(fd)
        _, result = os.waitpid(child, 0)
        os.write(status, STATUS.pack(os.waitstatus_to_exitcode(result)))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.write(fds[0], f"{error.strerror}".encode())
    finally:
        os._exit(0)


def _become(request: dict[str, Any], inherited: list[int]) -> None:
    """Turn this process into the command; never returns."""
    code = 127
    try:
        os.setsid()
        _place([(target, inherited[index]) for target, index in request["targets"]])
        for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        for name, value in request["rlimits"].items():
            _limit(getattr(resource, name), value)
        _change_folder(request["cwd"])
        env, argv = request["env"], request["argv"]
        try:
            os.execvpe(argv[0], argv, env)
        except (FileNotFoundError, NotADirectoryError):
            message = f"{argv[0]}: command not found\n"
        except OSError as error:
            code, message = 126, f"{argv[0]}: {error.strerror}\n"
        os.write(2, message.encode("utf-8", "replace"))
    except OSError as error:
        os.write(2, f"{error.filename}: {error.strerror}\n".encode("utf-8", "replace"))
    finally:
        os._exit(code)


def _change_folder(choices: list[str]) -> None:
    """Go to the first of these folders that still exists."""
    for folder in choices[:-1]:
        with contextlib.suppress(OSError):
            return os.chdir(folder)
    return os.chdir(choices[-1])


def _close_others(kept: list[int]) -> None:
    _close_gaps(3, sorted(kept))


def _close_gaps(floor: int, kept: list[int]) -> None:
    """Close every descriptor from `floor` up that is not in the sorted list `kept`."""
    for fd in kept:
        # An empty range is not harmless: closerange(0, 0) closes everything.
        if fd > floor:
            os.closerange(floor, fd)
        floor = max(floor, fd + 1)
    os.closerange(floor, 1 << 20)


def _place(wanted: list[tuple[int, int]]) -> None:
    """Give each descriptor its number and close every other."""
    # Moved up first, so that no dup2 overwrites a descriptor that is still to be placed.
    moved = [(to, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)) for to, fd in wanted]
    for target, fd in moved:
        os.dup2(fd, target, inheritable=True)
    _close_gaps(0, sorted(target for target, _ in wanted))


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))
