"""The door: the process through which commands get into an isolated sandbox."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

from swe_env.sandbox.keeper import wire
from swe_env.sandbox.keeper.spawn import close_others, report, start


def open_door(enter: Callable[[], None], ended: int) -> tuple[socket.socket, int]:
    """Fork a process that goes inside and starts what is asked for on the socket given back.

    One for a sandbox's life: to enter the namespaces, and to fork for that, costs more than to
    start a command from within.

    Args:
        enter: moves the process that calls it into the sandbox's namespaces, without any rights.
        ended: becomes readable when nothing is alive inside.

    Returns:
        The socket, and a descriptor that becomes readable when the process is gone.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # The keeper's own descriptors must not outlive it here.
            close_others([theirs.fileno(), ended])
            enter()
            _serve(theirs, ended)
        finally:
            os._exit(0)
    theirs.close()
    return ours, os.pidfd_open(pid)


def _serve(asked: socket.socket, ended: int) -> None:
    """Start commands until all inside is dead, and report how each ended."""
    running: dict[int, tuple[int, int]] = {}
    listening = [asked.fileno()]
    while ended not in (ready := wire.ready([ended, *listening, *running])):
        _reap(running, ready)
        if asked.fileno() in ready:
            try:
                request, fds = wire.recv(asked)
            except (EOFError, OSError):
                listening = []  # the owner is gone or done; the keeper ends what still runs
                continue
            child = start(request, fds)
            for fd in fds if child is None else fds[1:]:
                os.close(fd)
            if child is not None:
                running[os.pidfd_open(child)] = child, fds[0]
            os.chdir("/")
    _reap(running, set(running))


def _reap(running: dict[int, tuple[int, int]], ended: set[int]) -> None:
    for fd in ended.intersection(running):
        child, status = running.pop(fd)
        report(child, status)
        os.close(status)
        os.close(fd)
