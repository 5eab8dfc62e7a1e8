"""The library's side of the helper processes: one launcher per process, one keeper per sandbox."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swe_env.errors import SandboxError
from swe_env.sandbox.keeper import wire

_START_SECONDS = 120.0
_PACKAGE = Path(__file__).parents[1]
# The helpers run from these files without swe_env/__init__.py and what it imports.
_BOOT = """
import sys, types
for name, path in (("swe_env", sys.argv[1]), ("swe_env.sandbox", sys.argv[1] + "/sandbox")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from swe_env.sandbox.keeper.launcher import main
main(int(sys.argv[2]), int(sys.argv[3]))
"""


class _Launcher:
    """The process that forks keepers; started on first use, again if it was killed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def send(self, request: dict[str, Any], fds: Sequence[int]) -> None:
        with self.lock:
            for last in (False, True):
                try:
                    wire.send(self._socket or self._start(), request, fds)
                    return
                except OSError as error:
                    self._stop()
                    if last:
                        raise SandboxError(
                            f"The sandbox helper process does not start: {error.strerror}; "
                            f"check that {sys.executable!r} runs."
                        ) from error

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        numbers = [str(theirs.fileno()), str(os.getpid())]
        command = [sys.executable or "python3", "-I", "-S", "-c", _BOOT, str(_PACKAGE), *numbers]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={"LANG": "C.UTF-8", "PATH": os.environ.get("PATH", os.defpath)},
                cwd="/",
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._socket = ours
        return ours

    def _stop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.wait()
        self._socket = self._process = None

    def forget(self) -> None:
        """In a forked child: the launcher is the parent's."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.returncode = 0  # not this process's child: never to be waited for
        self.__init__()  # type: ignore[misc]

    def stop(self) -> None:
        with self.lock:
            self._stop()


_launcher = _Launcher()
os.register_at_fork(after_in_child=_launcher.forget)
atexit.register(_launcher.stop)


class Keeper:
    """The connection to one sandbox's keeper."""

    def __init__(self, request: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Have a sandbox set up.

        Raises:
            SandboxError: it cannot be; the message is the keeper's reason.
        """
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._socket, theirs = socket.socketpair()
        try:
            with theirs:
                _launcher.send(request, [theirs.fileno(), *fds])
            self._socket.settimeout(_START_SECONDS)
            self.answer, self.fds = self._receive()
        except BaseException:
            self._socket.close()
            raise
        self.pid: int = self.answer["pid"]

    def spawn(
        self,
        argv: Sequence[str],
        *,
        cwd: Sequence[str],
        env: Mapping[str, str],
        fds: Sequence[int],
        targets: Sequence[tuple[int, int]],
        rlimits: Mapping[str, int],
        outside: bool = False,
    ) -> None:
        """Start a command; ``fds[0]`` gets its status, `targets` maps its numbers to the others.

        `outside` runs a trusted program of this machine beside the sandbox, on its files.
        """
        request = {
            "op": "spawn",
            "argv": list(argv),
            "cwd": list(cwd),
            "env": dict(env),
            "targets": list(targets),
            "rlimits": dict(rlimits),
            "outside": outside,
        }
        with self._lock:
            self._send(request, fds)

    def call(
        self, request: dict[str, Any], fds: Sequence[int] = ()
    ) -> tuple[dict[str, Any], list[int]]:
        """Send a request and wait for its answer.

        Raises:
            SandboxError: the request failed, or the keeper is gone.
        """
        with self._lock:
            self._send(request, fds)
            return self._receive()

    def close(self) -> None:
        """End the sandbox; returns when nothing of it is left. Safe to call twice."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        if self._socket.fileno() >= 0:
            with contextlib.suppress(OSError):
                # In a forked child the sandbox is still the parent's to end.
                if os.getpid() == self._owner:
                    self._socket.shutdown(socket.SHUT_WR)
                    while self._socket.recv(4096):
                        pass
            self._socket.close()

    def _send(self, request: dict[str, Any], fds: Sequence[int] = ()) -> None:
        if os.getpid() != self._owner:
            raise SandboxError("A sandbox cannot be used after a fork: start one in the child.")
        try:
            wire.send(self._socket, request, fds)
        except OSError as error:
            raise SandboxError("The sandbox is gone: it was closed or killed.") from error

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        try:
            answer, fds = wire.recv(self._socket)
        except (EOFError, OSError) as error:
            raise SandboxError("The sandbox's keeper died or did not answer.") from error
        if "error" in answer:
            raise SandboxError(f"The sandbox failed: {answer['error']}.")
        return answer, fds
