"""The launcher: a small single-threaded process that forks one keeper for each sandbox."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys

from swe_env.sandbox.keeper import kernel, wire
from swe_env.sandbox.keeper.server import Keeper


def main(fd: int, owner: int) -> None:
    """Serve start requests on `fd` until it is closed or the process `owner` ends."""
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    kernel.forget_keys()
    try:
        owner_fd = os.pidfd_open(owner)
    except ProcessLookupError:
        return
    # Keepers and whatever is orphaned onto them are reaped by the kernel.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A collection would touch, and so copy, the memory that every keeper and watcher shares.
    gc.collect()
    gc.freeze()
    gc.disable()
    while True:
        if owner_fd in wire.ready([fd, owner_fd]):
            return
        try:
            request, fds = wire.recv(sock)
        except (EOFError, OSError):
            return
        if os.fork() == 0:
            _keep(sock, request, fds, owner_fd)
        for received in fds:
            os.close(received)


def _keep(launcher: socket.socket, request: dict[str, object], fds: list[int], owner: int) -> None:
    status = 1
    try:
        launcher.close()
        os.setsid()
        Keeper(socket.socket(fileno=fds[0]), owner).run(request)
        status = 0
    except BaseException as error:
        print(f"swe_env keeper: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(status)
