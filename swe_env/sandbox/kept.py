"""What `local` and `process` have in common: everything that goes through a keeper."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from swe_env.errors import SandboxError, ToolError
from swe_env.sandbox.base import Files, SandboxSpec
from swe_env.sandbox.client import Keeper
from swe_env.sandbox.diff import Ran, diff
from swe_env.sandbox.files import DirFiles
from swe_env.sandbox.output import Capture
from swe_env.sandbox.running import Pipes, exit_code, too_large, wait
from swe_env.sandbox.shell import Shell, ShellResult
from swe_env.types import ExecResult

_CHANNEL = 3  # dash takes only one digit
_BESIDE_SECONDS = 300.0
BASE_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "PAGER": "cat",
    "GIT_PAGER": "cat",
    "GIT_TERMINAL_PROMPT": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
}
"""What every command finds in its environment unless `SandboxSpec.env` says otherwise."""


class KeptSandbox:
    """A sandbox behind a keeper; the kinds differ in how it is set up."""

    kind: str

    def __init__(
        self,
        spec: SandboxSpec,
        keeper: Keeper,
        *,
        root: int,
        workdir: str,
        env: Mapping[str, str],
        rlimits: Mapping[str, int],
        cwd: str = "",
        private: Mapping[str, str] | None = None,
    ) -> None:
        self.spec = spec
        self.workdir = workdir
        self.private: Mapping[str, str] = dict(private or {})
        self._keeper = keeper
        self._root = root
        self._env = dict(env)
        self._rlimits = dict(rlimits)
        self._lock = threading.RLock()
        self._closed = False
        self._files = self._open_files()
        self.files: Files = self._files
        self._shell = self._new_shell(cwd)

    def _open_files(self) -> DirFiles:
        """File access to the workspace, made once."""
        return DirFiles(self._root, self.workdir, base=self.spec.base.absolute())

    def _processes(self) -> set[int]:
        """Processes alive in the sandbox, numbered as its commands see them."""
        raise NotImplementedError

    def _argument(self, text: str) -> str:
        """A command's argument as the sandbox needs it."""
        return text

    def _struck(self, code: int, output: str) -> str:
        """Name of the limit that struck in a command that ended so, or empty.

        Without counters (see `local`) only what a failed command says can tell.
        """
        return limit_told(code, output)

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
                ran = self._shell.run(
                    command,
                    timeout=timeout,
                    stdin=stdin,
                    env=env or {},
                    capture=capture,
                    keep_running=keep_running,
                )
                return self._result(ran, capture)
            if keep_running:
                raise SandboxError("Only a command of the shell, a string, can be left running.")
            argv = [self._argument(part) for part in command]
            code, timed_out, side = self._run(argv, timeout, stdin, env or {}, channel, capture)
            note = f"[Killed after {timeout:g} s with all it had started.]" if timed_out else ""
            return self._result(ShellResult(code, timed_out, note), capture, side)

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
            ran = self._shell.resume(
                stdin=stdin, interrupt=interrupt, kill=kill, timeout=timeout, capture=capture
            )
            return self._result(ran, capture)

    def _capture(self, output_limit: int | None) -> Capture:
        return Capture(self.spec.limits.output if output_limit is None else output_limit)

    def _result(self, ran: ShellResult, capture: Capture, side: bytes = b"") -> ExecResult:
        text, note = capture.text(), ran.note
        over = not ran.timed_out and not ran.running
        struck = self._struck(ran.exit_code, text) if over else ""
        if struck:
            note = "\n".join(filter(None, [f"[{MESSAGES[struck]}]", note]))
        if note:
            text += ("" if not text or text.endswith("\n") else "\n") + note + "\n"
        return ExecResult(
            exit_code=ran.exit_code,
            output=text,
            timed_out=ran.timed_out,
            limit=struck or ("output" if capture.cut else ""),
            channel=side,
            running=ran.running,
        )

    def _run(
        self,
        argv: list[str],
        timeout: float,
        stdin: bytes,
        env: Mapping[str, str],
        channel: bool,
        capture: Capture,
    ) -> tuple[int, bool, bytes]:
        """Run an argument list as its own process: (exit code, timed out, channel)."""
        if not argv:
            raise SandboxError("An empty argument list cannot be run.")
        earlier = self._processes()
        environment = {**self._env, **env}
        with contextlib.ExitStack() as given:
            pipes, fds = _open_pipes(given, stdin, channel)
            targets = [(0, 0), (1, 1), (2, 1)]
            if channel:
                targets.append((_CHANNEL, 2))
                environment["SWE_ENV_CHANNEL"] = str(_CHANNEL)
            try:
                self._keeper.spawn(
                    argv,
                    cwd=[self.workdir],
                    env=environment,
                    fds=fds,
                    targets=targets,
                    rlimits=self._rlimits,
                )
                given.close()
                ended = wait(pipes, capture, timeout=timeout)
                if ended.timed_out:
                    self._keeper.call({"op": "kill", "spared": sorted(earlier)})
                    late = wait(pipes, capture, timeout=1.0)
                    ended.side += late.side
            finally:
                pipes.close()
        if ended.timed_out:
            return -1, True, bytes(ended.side)
        if not ended.status:
            raise SandboxError("The sandbox died while a command ran in it.")
        return exit_code(ended.status), False, bytes(ended.side)

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
            try:
                return diff(
                    self.spec.base.absolute(),
                    files=self.files,
                    worktree=self._keeper.answer["worktree"],
                    scratch=self._keeper.answer["scratch"],
                    seed=self._seed,
                    run=self._beside,
                )
            except ToolError as error:  # of the workspace's files: nobody called a tool here
                raise SandboxError(f"The workspace cannot be read: {error}") from error
            finally:
                self._seed("")

    def _seed(self, index: str, doubted: bool = False) -> bool:
        """Empty the private folder and put a git index there, if there is one."""
        answer, _ = self._keeper.call({"op": "scratch", "index": index, "doubted": doubted})
        return bool(answer["seeded"])

    def _beside(self, argv: Sequence[str], env: Mapping[str, str], stdin: bytes = b"") -> Ran:
        """Run a trusted program of this machine on the sandbox's files."""
        with contextlib.ExitStack() as given:
            pipes, fds = _open_pipes(given, stdin, channel=True)
            try:
                self._keeper.spawn(
                    argv,
                    cwd=[self._keeper.answer["worktree"]],
                    env=env,
                    fds=fds,
                    # The side pipe takes the standard output: all of it, undecoded.
                    targets=[(0, 0), (1, 2), (2, 1)],
                    rlimits={},
                    outside=True,
                )
                given.close()
                errors = Capture(4000)
                ended = wait(pipes, errors, timeout=_BESIDE_SECONDS)
            finally:
                pipes.close()
        if ended.status is None:
            raise SandboxError(f"{argv[0]} did not end within {_BESIDE_SECONDS:g} s.")
        if ended.cut:
            raise too_large()
        return Ran(exit_code(ended.status), bytes(ended.side) or errors.text().encode())

    def close(self) -> None:
        """See `Sandbox.close`."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._shell.close()
                self._files.close()
                self._keeper.close()

    def _move_to(self, keeper: Keeper, root: int) -> None:
        """Go on in another keeper's workspace."""
        cwd = self._shell.cwd
        self._shell.close()
        self._files.move_to(root)
        self._keeper.close()
        self._keeper, self._root = keeper, root
        self._shell = self._new_shell(cwd)

    def _new_shell(self, cwd: str) -> Shell:
        return Shell(
            self._keeper,
            workdir=self.workdir,
            env=self._env,
            rlimits=self._rlimits,
            processes=self._processes,
            cwd=cwd,
        )

    def _check(self) -> None:
        if self._closed:
            raise SandboxError("The sandbox is closed; start another.")

    def __enter__(self) -> KeptSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_XFSZ = 128 + 25
_SIGNS = (
    ("processes", ("fork: retry: Resource", "fork: Resource", "can't start new thread")),
    ("memory", ("MemoryError", "Cannot allocate memory", "memory exhausted")),
    ("disk", ("No space left on device", "File too large", "File size limit exceeded")),
)
MESSAGES = {
    "memory": "Out of memory: the sandbox's memory limit was reached and a process was killed.",
    "processes": "The sandbox's limit on the number of processes was reached.",
    "disk": "The sandbox's disk or file size limit was reached.",
}


def limit_told(code: int, output: str) -> str:
    """Name of the limit that a failed command's own words tell of, or empty."""
    if code == 0:
        return ""
    said = (name for name, words in _SIGNS if any(word in output for word in words))
    return "disk" if code == _XFSZ else next(said, "")


def open_folder(path: Path) -> int:
    """A descriptor on the base checkout."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SandboxError(
            f"The base checkout {path} cannot be opened: {error.strerror}."
        ) from error


def _open_pipes(
    given: contextlib.ExitStack, stdin: bytes, channel: bool
) -> tuple[Pipes, list[int]]:
    """Pipes for one command: our ends, and (closed with `given`) the command's."""
    close: Callable[[int], None] = os.close
    output, output_in = os.pipe()
    status, status_in = os.pipe()
    fds = [status_in]
    if stdin:
        fds.append(os.memfd_create("stdin"))
        os.write(fds[-1], stdin)
        os.lseek(fds[-1], 0, os.SEEK_SET)
    else:
        fds.append(os.open("/dev/null", os.O_RDONLY))
    fds.append(output_in)
    side = -1
    if channel:
        side, side_in = os.pipe()
        fds.append(side_in)
    for fd in fds:
        given.callback(close, fd)
    return Pipes(output=output, status=status, side=side), fds
