"""The persistent bash of one episode, the same in every sandbox behind a keeper."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from swe_env.errors import SandboxError
from swe_env.sandbox.client import Keeper
from swe_env.sandbox.output import Capture
from swe_env.sandbox.running import Ended, Pipes, exit_code, pending, wait

# High numbers: commands like to use 3 to 9 themselves, bash takes 63 and down.
_REPORT = 97
_STDIN = 98
# bash reads its script from a pipe one line at a time, at top level, so that `declare`, `break`
# or `return` in a command mean what they mean in any shell.
_HELLO = 'shopt -s expand_aliases; builtin printf "%s %s %s %s\\0" {token} $$ $PPID / >&{report}\n'
_LINE = (
    "builtin eval {command} <{stdin} {report}>&- {closed}>&-; "
    '{{ builtin printf "%s %s %s\\0" {token} "$?" "$PWD" >&{report}; }} 2>/dev/null\n'
)
_READY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class ShellResult:
    """How one command in the shell ended."""

    exit_code: int
    timed_out: bool = False
    note: str = ""
    """What happened to the shell itself, for whoever reads the output."""


class Shell:
    """A bash whose folder, variables and functions last from command to command."""

    def __init__(
        self,
        keeper: Keeper,
        *,
        workdir: str,
        env: Mapping[str, str],
        rlimits: Mapping[str, int],
        processes: Callable[[], set[int]],
        cwd: str = "",
    ) -> None:
        """`processes` lists the sandbox's processes; the shell itself starts on first use."""
        self.cwd = cwd or workdir
        self._keeper = keeper
        self._workdir = workdir
        self._env = env
        self._rlimits = rlimits
        self._processes = processes
        self._pipes: Pipes | None = None
        self._stdin = -1
        self._own: set[int] = set()

    def run(
        self,
        command: str,
        *,
        timeout: float,
        stdin: bytes,
        env: Mapping[str, str],
        capture: Capture,
    ) -> ShellResult:
        """Run a command in the shell; its output goes to `capture`."""
        pipes = self._pipes or self.start()
        earlier = self._processes() - self._own
        token = secrets.token_hex(8)
        line = self._line(command, token, stdin, env)
        deadline = time.monotonic() + timeout
        while True:
            ended = wait(
                pipes,
                capture,
                timeout=deadline - time.monotonic(),
                outgoing=line,
                until=b"\0",
            )
            line = b""
            report = _report(ended.side, token)
            if report is not None and ended.status is None:
                self.cwd = report[1]
                return ShellResult(int(report[0]))
            if ended.timed_out:
                return self._timed_out(capture, earlier, timeout)
            if ended.status is not None:
                return self._died(ended)

    def start(self) -> Pipes:
        """Start bash and wait until it answers."""
        script_in, script = os.pipe()
        output, output_in = os.pipe()
        report, report_in = os.pipe()
        status, status_in = os.pipe()
        self._stdin = os.memfd_create("stdin")
        pipes = Pipes(output=output, status=status, side=report, feed=script)
        os.set_blocking(script, False)
        given = [status_in, script_in, output_in, report_in, self._stdin]
        targets = [(0, 0), (1, 1), (2, 1), (_REPORT, 2), (_STDIN, 3)]
        try:
            self._keeper.spawn(
                ["bash", "--noprofile", "--norc"],
                cwd=[self.cwd, self._workdir],
                env=self._env,
                fds=given,
                targets=targets,
                rlimits=self._rlimits,
            )
            for fd in given[:-1]:
                os.close(fd)
            self._own = self._greet(pipes)
        except BaseException:
            pipes.close()
            os.close(self._stdin)
            raise
        self._pipes = pipes
        return pipes

    def background_output(self) -> int:
        """Bytes that background processes have written since the last command."""
        return pending(self._pipes.output) if self._pipes else 0

    def close(self) -> None:
        """Let go of the shell's pipes; the sandbox ends the process itself."""
        if self._pipes is not None:
            self._pipes.close()
            os.close(self._stdin)
            self._pipes = None

    def _greet(self, pipes: Pipes) -> set[int]:
        token = secrets.token_hex(8)
        capture = Capture(2000)
        hello = _HELLO.format(token=token, report=_REPORT).encode()
        ended = wait(pipes, capture, timeout=_READY_SECONDS, outgoing=hello, until=b"\0")
        report = ended.side.decode("utf-8", "replace").split()
        if len(report) < 3 or report[0] != token:
            reason = capture.text().strip() or (ended.status or b"").decode("utf-8", "replace")
            raise SandboxError(f"The sandbox's shell does not start: {reason or 'no answer'}.")
        return {int(report[1]), int(report[2])}

    def _line(self, command: str, token: str, stdin: bytes, env: Mapping[str, str]) -> bytes:
        if stdin:
            os.ftruncate(self._stdin, 0)
            os.pwrite(self._stdin, stdin, 0)
        if "\0" in command:
            command = command.replace("\0", "")
        if env:
            names = " ".join(shlex.quote(f"{name}={value}") for name, value in env.items())
            command = f"export {names}\n{command}"
        line = _LINE.format(
            command=shlex.quote(command),
            stdin=f"/dev/fd/{_STDIN}" if stdin else "/dev/null",
            report=_REPORT,
            closed=_STDIN,
            token=token,
        )
        return line.encode("utf-8", "surrogateescape")

    def _timed_out(self, capture: Capture, earlier: set[int], timeout: float) -> ShellResult:
        assert self._pipes is not None
        self._keeper.call({"op": "kill", "spared": sorted(earlier)})
        wait(self._pipes, capture, timeout=1.0)
        self.close()
        note = (
            f"[The command ran longer than {timeout:g} s and was killed with all it had started. "
            f"A new shell starts in {self.cwd}; variables and functions are gone.]"
        )
        return ShellResult(-1, timed_out=True, note=note)

    def _died(self, ended: Ended) -> ShellResult:
        code = exit_code(ended.status or b"")
        self.close()
        note = (
            f"[The command ended the shell (exit code {code}). "
            f"A new shell starts in {self.cwd}; variables and functions are gone.]"
        )
        return ShellResult(code, note=note)


def _report(side: bytearray, token: str) -> tuple[str, str] | None:
    """(exit code, folder) from the record that carries our token."""
    for record in side.split(b"\0"):
        fields = record.decode("utf-8", "surrogateescape").split(" ", 2)
        if len(fields) == 3 and fields[0] == token:
            with contextlib.suppress(ValueError):
                return str(int(fields[1])), fields[2]
    return None
