"""The library's side of the helper processes: one launcher per process, one keeper per sandbox."""

from __future__ import annotations

import atexit
import contextlib
import json
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
_SORTS = 2
"""For how many sorts of sandbox a spare is kept."""
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


class _Spares:
    """Keepers prepared ahead, so that the next sandbox of the same sort only begins.

    One for each sort of sandbox, of the few sorts used last: making one costs some milliseconds of
    processor time and, while it waits, some megabytes.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._waiting: dict[str, socket.socket] = {}

    def take(self, prepared: dict[str, Any]) -> socket.socket | None:
        """The spare of this sort, which is the caller's from now on."""
        with self.lock:
            return self._waiting.pop(json.dumps(prepared), None)

    def order(self, prepared: dict[str, Any]) -> None:
        """Have a spare of this sort made, unless one waits; returns at once."""
        sort = json.dumps(prepared)
        with self.lock:
            if sort in self._waiting:
                return
            with contextlib.suppress(SandboxError):
                self._waiting[sort] = _order(prepared)
            surplus = list(self._waiting)[:-_SORTS]
            ended = [self._waiting.pop(old) for old in surplus]
        for control in ended:
            control.close()

    def forget(self) -> None:
        """In a forked child: the spares are the parent's."""
        for control in self._waiting.values():
            control.close()
        self.__init__()  # type: ignore[misc]

    def stop(self) -> None:
        """End the spares and wait until nothing of them is left."""
        with self.lock:
            waiting, self._waiting = self._waiting, {}
        for control in waiting.values():
            _end(control)


def _order(prepared: dict[str, Any]) -> socket.socket:
    """Have the launcher fork a keeper that prepares itself; the connection to it."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            _launcher.send(prepared, [theirs.fileno()])
        ours.settimeout(_START_SECONDS)
    except BaseException:
        ours.close()
        raise
    return ours


def _end(control: socket.socket) -> None:
    """Tell a keeper to end and wait until it has."""
    with contextlib.suppress(OSError):
        control.shutdown(socket.SHUT_WR)
        while control.recv(4096):
            pass
    control.close()


_launcher = _Launcher()
_spares = _Spares()
os.register_at_fork(after_in_child=_launcher.forget)
os.register_at_fork(after_in_child=_spares.forget)
atexit.register(_launcher.stop)
atexit.register(_spares.stop)


class Keeper:
    """The connection to one sandbox's keeper."""

    def __init__(
        self,
        prepared: dict[str, Any],
        request: dict[str, Any],
        fds: Sequence[int] = (),
        *,
        spare: bool = False,
    ) -> None:
        """Have a sandbox set up.

        Args:
            prepared: what the keeper needs to know to prepare itself.
            request: what it begins with then.
            fds: descriptors that go with the request.
            spare: take a keeper prepared earlier where one waits, and leave one for the next.

        Raises:
            SandboxError: it cannot be; the message is the keeper's reason.
        """
        self._lock = threading.Lock()
        self._owner = os.getpid()
        waiting = _spares.take(prepared) if spare else None
        try:
            self._begin(waiting or _order(prepared), request, fds)
        except SandboxError:
            if waiting is None:
                raise
            # It was killed, or what it sees of this machine is no longer what there is.
            self._begin(_order(prepared), request, fds)
        if spare:
            _spares.order(prepared)
        self.pid: int = self.answer["pid"]

    def _begin(self, control: socket.socket, request: dict[str, Any], fds: Sequence[int]) -> None:
        self._socket = control
        try:
            # One that failed to prepare itself is gone, but has said why.
            with contextlib.suppress(OSError):
                wire.send(control, request, fds)
            self.answer, self.fds = self._receive()
            # Where there is a door, the last descriptor is the way to it.
            self._door = socket.socket(fileno=self.fds.pop()) if self.answer.get("door") else None
        except BaseException:
            control.close()
            raise

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
        }
        with self._lock:
            self._send(request, fds, self._socket if outside else self._door or self._socket)

    def call(
        self, request: dict[str, Any], fds: Sequence[int] = ()
    ) -> tuple[dict[str, Any], list[int]]:
        """Send a request and wait for its answer.

        Raises:
            SandboxError: the request failed, or the keeper is gone.
        """
        with self._lock:
            self._send(request, fds, self._socket)
            return self._receive()

    def close(self) -> None:
        """End the sandbox; returns when nothing of it is left. Safe to call twice."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        if self._door is not None:
            self._door.close()
        # In a forked child the sandbox is still the parent's to end.
        if os.getpid() == self._owner:
            _end(self._socket)
        else:
            self._socket.close()

    def _send(self, request: dict[str, Any], fds: Sequence[int], to: socket.socket) -> None:
        if os.getpid() != self._owner:
            raise SandboxError("A sandbox cannot be used after a fork: start one in the child.")
        try:
            wire.send(to, request, fds)
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
