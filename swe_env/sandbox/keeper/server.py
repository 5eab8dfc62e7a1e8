"""The keeper of one sandbox: sets it up, starts commands in it, tears it down."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any, Protocol

from swe_env.sandbox.keeper import wire
from swe_env.sandbox.keeper.isolated import Isolated
from swe_env.sandbox.keeper.plain import Plain
from swe_env.sandbox.keeper.spawn import spawn


class Workspace(Protocol):
    """What differs between the kinds of sandbox."""

    def begin(self, request: dict[str, Any], fds: list[int]) -> None:
        """Put the checkout into what was prepared; the descriptors are this method's to close."""
        ...

    def describe(self) -> tuple[dict[str, Any], list[int]]:
        """The answer to the start request, with descriptors."""
        ...

    def watched(self) -> list[int]:
        """Descriptors that become readable when the sandbox died by itself."""
        ...

    def kill(self, spared: list[int]) -> None:
        """Kill every process but these and theirs."""
        ...

    def interrupt(self, spared: list[int]) -> None:
        """Send SIGINT, as ctrl+c does, to every process but these and theirs."""
        ...

    def scratch(self) -> Path:
        """Empty the private folder that commands never see; where it is."""
        ...

    def snapshot(self) -> int:
        """A folder descriptor on a copy of what changed."""
        ...

    def refill(self, source: int) -> None:
        """Put the workspace back to the snapshot behind this folder descriptor."""
        ...

    def teardown(self) -> None:
        """Leave no process and no file."""
        ...

    def tidy(self) -> None:
        """What may be done when nobody waits any more; after `teardown`."""
        ...


class Keeper:
    """Answers the requests for one sandbox until its owner is gone."""

    def __init__(self, control: socket.socket, owner: int) -> None:
        self.control = control
        self.owner = owner

    def run(self, request: dict[str, Any]) -> None:
        """Prepare, wait until there is a checkout to begin with, serve, tear down."""
        try:
            workspace = _open(request)
        except Exception as error:
            wire.send(self.control, {"error": _sentence(error)})
            return
        try:
            if self._begin(workspace):
                self._serve(workspace)
        except (EOFError, ConnectionError):
            pass
        finally:
            workspace.teardown()
            self.control.close()
            workspace.tidy()

    def _begin(self, workspace: Workspace) -> bool:
        """Wait for the request to begin and do so; False when there is nothing to serve."""
        if self._ended(workspace):
            return False
        request, fds = wire.recv(self.control)
        try:
            workspace.begin(request, fds)
            answer, given = workspace.describe()
        except Exception as error:
            wire.send(self.control, {"error": _sentence(error)})
            return False
        wire.send(self.control, {"pid": os.getpid(), **answer}, given)
        return True

    def _ended(self, workspace: Workspace) -> bool:
        """Wait for the next request; True when the owner or the sandbox ended instead."""
        ends = [self.owner, *workspace.watched()]
        return bool(wire.ready([self.control.fileno(), *ends]).intersection(ends))

    def _serve(self, workspace: Workspace) -> None:
        while not self._ended(workspace):
            request, fds = wire.recv(self.control)
            if request["op"] == "spawn":
                spawn(request, fds)
            else:
                self._answer(workspace, request, fds)
            for fd in fds:
                os.close(fd)

    def _answer(self, workspace: Workspace, request: dict[str, Any], fds: list[int]) -> None:
        made: list[int] = []
        answer: dict[str, Any] = {}
        try:
            match request["op"]:
                case "kill":
                    workspace.kill(request["spared"])
                case "interrupt":
                    workspace.interrupt(request["spared"])
                case "scratch":
                    index = workspace.scratch() / "index"
                    answer["seeded"] = _copy(request["index"], index)
                    if answer["seeded"] and request["doubted"]:
                        os.utime(index, (1, 1))  # older than every file: git then compares contents
                case "snapshot":
                    made.append(workspace.snapshot())
                case "refill":
                    workspace.refill(fds[0])
            wire.send(self.control, answer, made)
        except OSError as error:
            wire.send(self.control, {"error": _sentence(error)})
        finally:
            for fd in made:
                os.close(fd)


def _copy(path: str, target: Path) -> bool:
    """Copy a file with its time; False when there is none."""
    try:
        times = os.stat(path)  # noqa: PTH116 - empty for none
    except FileNotFoundError:
        return False
    shutil.copyfile(path, target)
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
    return True


def _open(request: dict[str, Any]) -> Workspace:
    return Plain(request) if request["kind"] == "process" else Isolated(request)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__
