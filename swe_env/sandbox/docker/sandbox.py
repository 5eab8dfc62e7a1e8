"""`DockerSandbox`: one container, the episode's shell in it, its files, and images of its state."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from swe_env.errors import SandboxError, ToolError
from swe_env.sandbox.base import Files, Sandbox, SandboxSpec, Snapshot
from swe_env.sandbox.docker import owner, scripts
from swe_env.sandbox.docker.changes import changed_paths, diff
from swe_env.sandbox.docker.container import Container
from swe_env.sandbox.docker.images import Ready
from swe_env.sandbox.docker.listener import Listener
from swe_env.sandbox.docker.served import ContainerFiles
from swe_env.sandbox.docker.shell import Ended, NoShell, Shell, final_code, wait
from swe_env.sandbox.kept import MESSAGES, limit_told
from swe_env.sandbox.output import Capture
from swe_env.types import ExecResult

_KILL_SECONDS = 20.0
_KILLED = 137
_DISK_SHARE = 10
"""The disk is looked at for at most one part in this many of the time."""


class Saved:
    """An image of a container's files, kept while anything is made of it."""

    def __init__(self, container: Container, paths: frozenset[str]) -> None:
        self.tag = f"{owner.IMAGES}/state:{secrets.token_hex(12)}"
        self.paths = paths
        """Paths of the workspace that may differ from its base."""
        self._engine = container.engine
        self._users = 1
        self._lock = threading.Lock()
        repository, _, version = self.tag.partition(":")
        with self._engine.doing("save the sandbox's state"):
            self._engine.api.commit(container.id, repository=repository, tag=version)

    def take(self) -> Saved:
        """One more user."""
        with self._lock:
            self._users += 1
        return self

    def drop(self) -> None:
        """One user less; the last one removes the image."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            owner.remove_image(self._engine, self.tag)


class DockerSnapshot:
    """A saved state."""

    def __init__(self, saved: Saved) -> None:
        self.saved: Saved | None = saved

    def discard(self) -> None:
        """Free it; safe to call twice."""
        saved, self.saved = self.saved, None
        if saved is not None:
            saved.drop()


class DockerSandbox:
    """Commands run in a container that has no rights, no network and nothing of this machine.

    `fork` and `restore` copy files, not processes: the shell starts anew in the same folder, and
    `restore` ends what is running.
    """

    kind = "docker"

    def __init__(
        self,
        spec: SandboxSpec,
        container: Container,
        ready: Ready,
        *,
        workdir: str,
        state: Saved | None = None,
        cwd: str = "",
    ) -> None:
        self.spec = spec
        self.workdir = workdir
        self.private: Mapping[str, str] = {}
        self._engine = container.engine
        self._container = container
        self._ready = ready
        self._state = state
        """What the container was started from, unless it is the task's own image."""
        self._lock = threading.RLock()
        self._owner = os.getpid()
        self._closed = False
        self._files = ContainerFiles(self._engine, container.id, workdir)
        self.files: Files = self._files
        self._seen: dict[str, int] = {}
        self._disk_next = 0.0
        self._disk_struck = False
        self._shell = self._new_shell(cwd or workdir)

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
        """See `Sandbox.exec`. With a string, `env` is exported to the shell and stays."""
        capture = self._capture(output_limit)
        with self._lock:
            self._check()
            if isinstance(command, str):
                if channel:
                    raise SandboxError("A result channel needs a command given as a list.")
                if self._shell.running:
                    raise ToolError(
                        "A command is still running in the shell: poll it, feed it, interrupt it "
                        "or kill it first."
                    )
                try:
                    ended = self._shell.run(
                        command,
                        timeout=timeout,
                        stdin=stdin,
                        env=env or {},
                        capture=capture,
                        tick=self._over,
                        keep_running=keep_running,
                    )
                except NoShell as error:
                    # The agent's own doing: the container runs.
                    ended = Ended(126, note=f"[No shell can be started any more: {error}.]")
                return self._result(ended, capture)
            if keep_running:
                raise SandboxError("Only a command of the shell, a string, can be left running.")
            ended = self._apart(list(command), timeout, stdin, env or {}, channel, capture)
            return self._result(ended, capture)

    def resume(
        self,
        *,
        stdin: bytes = b"",
        interrupt: bool = False,
        kill: bool = False,
        timeout: float = 60.0,
        output_limit: int | None = None,
    ) -> ExecResult:
        """See `Sandbox.resume`."""
        capture = self._capture(output_limit)
        with self._lock:
            self._check()
            if not self._shell.running:
                raise ToolError("No command is running in the shell.")
            ended = self._shell.resume(
                stdin=stdin,
                interrupt=interrupt,
                kill=kill,
                timeout=timeout,
                capture=capture,
                tick=self._over,
            )
            return self._result(ended, capture)

    def _capture(self, output_limit: int | None) -> Capture:
        self._disk_struck, self._disk_next = False, 0.0
        return Capture(self.spec.limits.output if output_limit is None else output_limit)

    def _result(self, ended: Ended, capture: Capture) -> ExecResult:
        text = capture.text()
        struck = "" if ended.timed_out or ended.running else self._struck(ended, text)
        note = ended.note
        if struck:
            note = "\n".join(filter(None, [f"[{MESSAGES[struck]}]", note]))
        if note:
            text += ("" if not text or text.endswith("\n") else "\n") + note + "\n"
        return ExecResult(
            exit_code=ended.exit_code,
            output=text,
            timed_out=ended.timed_out,
            limit=struck or ("output" if capture.cut else ""),
            channel=ended.side,
            running=ended.running,
        )

    def read_file(self, path: str) -> bytes:
        """See `Files.read`."""
        return self.files.read(path)

    def write_file(self, path: str, data: bytes) -> None:
        """See `Files.write`."""
        self.files.write(path, data)

    def diff(self) -> str:
        """See `Sandbox.diff`."""
        with self._lock:
            self._check()
            return diff(self._ready.base.absolute(), self._paths(), self._files)

    def snapshot(self) -> Snapshot:
        """See `Sandbox.snapshot`: the container's writable layer as an image."""
        with self._lock:
            self._check()
            return DockerSnapshot(self._save())

    def restore(self, snapshot: Snapshot) -> None:
        """See `Sandbox.restore`; running processes are ended."""
        if not isinstance(snapshot, DockerSnapshot) or snapshot.saved is None:
            raise SandboxError("This snapshot was discarded, or is of another kind of sandbox.")
        with self._lock:
            self._check()
            self._move_to(snapshot.saved.take())

    def fork(self) -> Sandbox:
        """See `Sandbox.fork`."""
        with self._lock:
            self._check()
            saved = self._save()
            try:
                container = self._from(saved)
            except BaseException:
                saved.drop()
                raise
            return DockerSandbox(
                self.spec,
                container,
                self._ready,
                workdir=self.workdir,
                state=saved,
                cwd=self._shell.cwd,
            )

    def close(self) -> None:
        """See `Sandbox.close`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._shell.close()
            self._files.close()
            # In a forked child the container is still the parent's to end.
            if os.getpid() == self._owner:
                self._container.close()
                if self._state is not None:
                    self._state.drop()

    def _apart(
        self,
        argv: list[str],
        timeout: float,
        stdin: bytes,
        env: Mapping[str, str],
        channel: bool,
        capture: Capture,
    ) -> Ended:
        """Run an argument list as its own process."""
        if not argv:
            raise SandboxError("An empty argument list cannot be run.")
        variables = [f"{name}={value}" for name, value in env.items()]
        if channel:
            variables.append("SWE_ENV_CHANNEL=3")
        token = secrets.token_hex(16)
        listener = Listener(token, capture)
        started, stream = self._engine.exec(
            self._container.id,
            scripts.wrapped(argv, self.workdir, channel=channel),
            env=variables,
        )
        stream.queue(token.encode() + b"\n" + stdin, end=True)
        try:
            how = wait(
                self._engine,
                started,
                stream,
                listener,
                until=time.monotonic() + timeout,
                tick=self._over,
            )
            if how in ("late", "stopped"):
                self._signal("KILL", listener.since, listener.pid)
                stream.pump(listener, until=time.monotonic() + 0.3)
        finally:
            stream.close()
        listener.flush()
        side = bytes(listener.side)
        if how == "late":
            note = f"[Killed after {timeout:g} s with all it had started.]"
            return Ended(-1, timed_out=True, note=note, side=side)
        if how == "stopped":
            return Ended(-1, note="[Killed with all it had started.]", side=side)
        code = listener.code
        if code is None:
            code = final_code(self._engine, started)
        return Ended(code, struck=listener.struck, side=side)

    def _struck(self, ended: Ended, output: str) -> str:
        if self._disk_struck:
            return "disk"
        counters = ended.struck
        if ended.exit_code == _KILLED and not counters:
            # The shell itself was the victim, so it read no counter: a failing command does.
            with contextlib.suppress(SandboxError):
                failed = self._apart(["false"], _KILL_SECONDS, b"", {}, False, Capture(0))
                counters = failed.struck
        for name, count in counters.items():
            if count > self._seen.get(name, 0):
                self._seen[name] = count
                return name
        told = limit_told(ended.exit_code, output)
        return "" if told in counters else told  # a counter knows better

    def _over(self) -> bool:
        """Whether the writable layer has outgrown its limit; looked at seldom, as it takes time."""
        began = time.monotonic()
        if began < self._disk_next:
            return False
        used = self._engine.disk_used(self._container.id)
        took = time.monotonic() - began
        self._disk_next = time.monotonic() + max(1.0, _DISK_SHARE * took)
        self._disk_struck = used > self.spec.limits.disk
        return self._disk_struck

    def _signal(self, name: str, since: int, pid: int) -> None:
        """Signal what was started since a tick, and the process `pid`; see `scripts.KILL`."""
        script = [*scripts.SHELL, "-p", "-c", scripts.KILL, "sh", str(since), name, str(pid), ""]
        with contextlib.suppress(SandboxError):
            code, _ = self._container.run(script, timeout=_KILL_SECONDS)
            if code == 0 or name != "KILL":
                return
        if name == "KILL":
            # No process can be started, perhaps as there are too many already: end them all.
            self._move_to(self._save())

    def _unread(self, pid: int) -> bool:
        """Whether the shell `pid` has not read all it was given; see `scripts.UNREAD`."""
        try:
            code, _ = self._container.run([*scripts.UNREAD, str(pid)], timeout=_KILL_SECONDS)
        except SandboxError:
            return True
        return code != scripts.ALL_READ

    def _paths(self) -> frozenset[str]:
        earlier = self._state.paths if self._state is not None else frozenset()
        return earlier | changed_paths(self._engine, self._container.id, self.workdir)

    def _save(self) -> Saved:
        before = self._paths()
        saved = Saved(self._container, before)
        saved.paths |= self._paths()
        return saved

    def _from(self, saved: Saved) -> Container:
        return Container(self._engine, replace(self._container.setup, image=saved.tag))

    def _move_to(self, saved: Saved) -> None:
        """Go on in a new container made of a saved state; takes over one use of it."""
        try:
            container = self._from(saved)
        except BaseException:
            saved.drop()
            raise
        cwd = self._shell.cwd
        self._shell.close()
        self._files.move_to(container.id)
        self._container.close()
        if self._state is not None:
            self._state.drop()
        self._container, self._state, self._seen = container, saved, {}
        self._shell = self._new_shell(cwd)

    def _new_shell(self, cwd: str) -> Shell:
        return Shell(
            self._engine,
            self._container.id,
            workdir=self.workdir,
            cwd=cwd,
            signal=self._signal,
            unread=self._unread,
        )

    def _check(self) -> None:
        if self._closed:
            raise SandboxError("The sandbox is closed; start another.")
        if os.getpid() != self._owner:
            raise SandboxError("A sandbox cannot be used after a fork: start one in the child.")

    def __enter__(self) -> DockerSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
