"""The keeper of one sandbox: sets it up, starts commands in it, tears it down."""

from __future__ import annotations

import os
import socket
from typing import Any, Protocol

from swe_env.sandbox.keeper import wire
from swe_env.sandbox.keeper.isolated import Isolated
from swe_env.sandbox.keeper.plain import Plain
from swe_env.sandbox.keeper.spawn import spawn


class Workspace(Protocol):
    """What differs between the kinds of sandbox."""

    def describe(self) -> tuple[dict[str, Any], list[int]]:
        """The answer to the start request, with descriptors."""
        ...

    def watched(self) -> list[int]:
        """Descriptors that become readable when the sandbox died by itself."""
        ...

    def enter(self) -> None:
        """Move the calling process into the sandbox's namespaces."""
        ...

    def kill(self, spared: list[int]) -> None:
        """Kill every process but these and theirs."""
        ...

    def interrupt(self, spared: list[int]) -> None:
        """Send SIGINT, as ctrl+c does, to every process but these and theirs."""
        ...

    def scratch(self) -> None:
        """Empty the private folder that commands never see."""
        ...

    def snapshot(self) -> int:
        """A folder descriptor on a copy of what changed."""
        ...

    def refill(self, source: int) -> None:
        """Put the workspace back to the snapshot behind this folder descriptor."""
        ...

    def teardown(self) -> None:
        """Leave nothing."""
        ...


class Keeper:
    """Answers the requests for one sandbox until its owner is gone."""

    def __init__(self, control: socket.socket, fds: list[int], owner: int) -> None:
        self.control = control
        self.fds = fds
        self.owner = owner

    def run(self, request: dict[str, Any]) -> None:
        """Set up, serve, tear down."""
        try:
            workspace = _open(request, self.fds)
        except Exception as error:
            wire.send(self.control, {"error": _sentence(error)})
            return
        try:
            answer, fds = workspace.describe()
            wire.send(self.control, {"pid": os.getpid(), **answer}, fds)
            self._serve(workspace)
        except (EOFError, ConnectionError):
            pass
        finally:
            workspace.teardown()

    def _serve(self, workspace: Workspace) -> None:
        ends = [self.owner, *workspace.watched()]
        while True:
            ready = wire.ready([self.control.fileno(), *ends])
            if ready.intersection(ends):
                return
            request, fds = wire.recv(self.control)
            if request["op"] == "spawn":
                spawn(request, fds, workspace.enter)
            else:
                self._answer(workspace, request, fds)
            for fd in fds:
                os.close(fd)

    def _answer(self, workspace: Workspace, request: dict[str, Any], fds: list[int]) -> None:
        made: list[int] = []
        try:
            match request["op"]:
                case "kill":
                    workspace.kill(request["spared"])
                case "interrupt":
                    workspace.interrupt(request["spared"])
                case "scratch":
                    workspace.scratch()
                case "snapshot":
                    made.append(workspace.snapshot())
                case "refill":
                    workspace.refill(fds[0])
            wire.send(self.control, {}, made)
        except OSError as error:
            wire.send(self.control, {"error": _sentence(error)})
        finally:
            for fd in made:
                os.close(fd)


def _open(request: dict[str, Any], fds: list[int]) -> Workspace:
    return Plain(request, fds) if request["kind"] == "process" else Isolated(request, fds)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__
