"""What every sandbox promises; `check_sandbox` proves it for an implementation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from swe_env.types import ExecResult

WORKDIR = "/testbed"
"""Where commands find the checkout in every isolating sandbox."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one sandbox may use, all its processes together."""

    memory: int = 4 << 30
    """Bytes of memory, the writable layer of the checkout included."""
    processes: int = 256
    file_size: int = 512 << 20
    """Bytes of the largest file."""
    disk: int = 1 << 30
    """Bytes written over the base checkout."""
    output: int = 1 << 20
    """Characters of a command's output that are kept, before tools shorten it further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What to start: a checkout, the environment its tests need, and limits."""

    base: Path
    """Read-only folder with the starting state, `.git` included; shared by many sandboxes."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of every command; in values ``{workdir}`` stands for the workspace's
    root and ``{PATH}``, for each path of `binds`, for where commands find that folder."""
    binds: Mapping[str, Path] = field(default_factory=dict)
    """Read-only extra folders: path inside → folder on this machine (Python environments)."""
    hidden: tuple[str, ...] = ()
    """Folders of this machine that commands must find empty, where the sandbox can hide them: other
    installed packages, one of which may be the task's own, answer included."""
    limits: Limits = field(default_factory=Limits)
    network: bool = False
    image: str = ""
    """Container image, for sandboxes that run images; its own checkout is then used, not `base`."""
    workdir: str = WORKDIR
    """Where that checkout lies in the image."""

    def variables(self, workdir: str, *, bound: bool = True) -> dict[str, str]:
        """`env` with its placeholders filled in.

        Args:
            workdir: The workspace's root as commands see it.
            bound: Whether `binds` lie at their paths inside, or are used where they are.
        """
        places = {"{workdir}": workdir}
        for inside, folder in self.binds.items():
            places["{" + inside + "}"] = inside if bound else str(folder)
        filled = {}
        for name, value in self.env.items():
            for placeholder, path in places.items():
                value = value.replace(placeholder, path)
            filled[name] = value
        return filled


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a folder."""

    name: str
    kind: str
    """``file``, ``dir``, ``link`` or ``other`` (devices, FIFOs, sockets)."""
    size: int
    """Bytes; of the target's name for a link."""


class Files(Protocol):
    """File access inside the workspace and nowhere else, without starting a process.

    Paths are relative to the workspace's root, with forward slashes; an absolute path must lie
    under `Sandbox.workdir`. Symbolic links are followed only inside the workspace. Each method
    raises `ToolError` with one sentence when the path is outside, missing, of the wrong kind
    (device, FIFO, folder) or larger than the given limit.
    """

    def read(self, path: str, *, limit: int = 16 << 20) -> bytes:
        """The file's bytes; `ToolError` when it is larger than `limit`."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file, keeping its mode; parent folders are made."""
        ...

    def remove(self, path: str) -> None:
        """Delete a file."""
        ...

    def stat(self, path: str) -> Entry | None:
        """The entry at `path` (links followed), or None when there is none."""
        ...

    def list(self, path: str = "") -> list[Entry]:
        """Entries of a folder, sorted by name."""
        ...

    def walk(self, path: str = "") -> Iterator[tuple[str, Entry]]:
        """(relative path, entry) of everything below, ``.git`` left out, folders sorted."""
        ...


class Snapshot(Protocol):
    """The workspace as it was at one moment; opaque, usable until `discard`."""

    def discard(self) -> None:
        """Free what the snapshot holds."""
        ...


@runtime_checkable
class Sandbox(Protocol):
    """One isolated copy of a checkout in which commands run.

    Every method raises `SandboxError` when the sandbox itself failed (never when a command did).
    """

    kind: str
    """What it is (``local``, ``process``), also when it was started by ``auto``; for records."""
    workdir: str
    """The workspace's root as commands see it."""
    private: Mapping[str, str]
    """Paths outside the workspace that differ between two sandboxes of the same spec, each with
    what a model is shown instead (best something a shell takes for it, like ``~``), longest first;
    empty where all sandboxes look alike."""
    files: Files

    def exec(
        self,
        command: str | Sequence[str],
        *,
        timeout: float = 60.0,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        channel: bool = False,
        output_limit: int | None = None,
        keep_running: bool = False,
    ) -> ExecResult:
        """Run a command and wait for it.

        A string goes to the episode's persistent shell: working folder, variables and functions
        survive to the next call; a shell that died or was left by ``exit`` is replaced and
        the output says so. A sequence is run as its own process in a clean environment (that of
        `SandboxSpec.env` plus `env`), at the workspace's root. At the time-out everything the
        command started is killed.

        With `channel` (sequence form only) the command inherits a descriptor whose number is in
        the environment variable ``SWE_ENV_CHANNEL``; what it writes there comes back in
        `ExecResult.channel`, apart from its output.

        With `keep_running` (string form only) a command that is not done at the time-out is left
        running: the result has exit code -1 and `ExecResult.running`, and `resume` goes on with
        it. Without `stdin` its standard input is then an open pipe that holds whatever `resume`
        feeds; with `stdin`, and without `keep_running`, the input ends after `stdin`. Until it has
        ended, another command for the shell raises `ToolError`; sequences still run.
        """
        ...

    def resume(
        self,
        *,
        stdin: bytes = b"",
        interrupt: bool = False,
        kill: bool = False,
        timeout: float = 60.0,
        output_limit: int | None = None,
    ) -> ExecResult:
        """Wait on for the command that `exec` left running, and return what is new.

        Output since the last result; `ExecResult.running` again when it is still not done. What
        it writes in between waits in a pipe of limited size, so a command that says much goes on
        only while it is waited for.

        Args:
            stdin: fed to the command before waiting; a line needs its newline.
            interrupt: first send what ctrl+c sends, SIGINT, to what the command has in the
                foreground, the shell's own loops included. The rest of a list (``a; b``) goes on.
            kill: instead, end it as `exec` does at a time-out.
            timeout: seconds to wait for its end.
            output_limit: as for `exec`.

        Raises:
            ToolError: no command is running, or there is `stdin` for one whose input has ended.
        """
        ...

    def read_file(self, path: str) -> bytes:
        """`files.read`."""
        ...

    def write_file(self, path: str, data: bytes) -> None:
        """`files.write`."""
        ...

    def diff(self) -> str:
        """Git's unified diff from the base to the workspace: every change, whoever made it.

        Untracked files are included unless the repository ignores them; the agent's own `.git`
        (its configuration, hooks, commits) has no influence on it.

        Raises:
            PatchRefused: it is larger than 64 MiB, which says nothing against the sandbox.
        """
        ...

    def snapshot(self) -> Snapshot:
        """Keep the workspace as it is now (files, not processes)."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Put the workspace back to a snapshot of this sandbox or one it was forked from."""
        ...

    def fork(self) -> Sandbox:
        """An independent sandbox whose workspace starts as this one's is now."""
        ...

    def close(self) -> None:
        """Kill every process, drop the writable layer; safe to call twice."""
        ...


class SandboxFactory(Protocol):
    """Starts sandboxes of one kind; what `swe_env.sandbox.get(name)` returns."""

    def __call__(self, spec: SandboxSpec) -> Sandbox:
        """Start one; `SandboxError` says in one sentence why it cannot."""
        ...

    def available(self) -> str:
        """Empty when this kind works on this machine, else one sentence saying what to do."""
        ...
