"""The persistent bash of one episode, the same in every sandbox behind a keeper."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from swe_env.errors import SandboxError, ToolError
from swe_env.sandbox.client import Keeper
from swe_env.sandbox.output import Capture
from swe_env.sandbox.running import Ended, Pipes, drain, exit_code, pending, wait

# High numbers: commands like to use 3 to 9 themselves, bash takes 63 and down.
_INPUT = 96
_REPORT = 97
_STDIN = 98
_OUTPUT = 99
_ERRORS = 95
# bash reads its script from a pipe one line at a time, at top level, so that `declare`, `break`
# or `return` in a command mean what they mean in any shell.
#
# The trap is what ctrl+c does to bash itself: without it a loop would go on with its next turn,
# and `read` with waiting. While a command runs the report's descriptor is closed, and only then
# is the standard input not the script.
_HELLO = (
    "shopt -s expand_aliases; "
    "trap '{{ [[ -e /dev/fd/{report} ]] || exec </dev/null; break 9999; }} 2>/dev/null' "
    "INT; exec {output}>&1; "
    # Reports the exit code, whether the shell's output still goes to us (not 0; "!" keeps `set -e`
    # out of it), and the folder; kept here because bash reads what is sent later byte by byte.
    "__swe_done() {{ "
    "! [[ /dev/fd/1 -ef /dev/fd/{output} && /dev/fd/{errors} -ef /dev/fd/{output} ]]; "
    'builtin printf "%s %s %s %s\\0" "$1" "$2" "$?" "$PWD" >&{report}; }}; '
    'builtin printf "%s %s %s %s\\0" {token} $$ $PPID / >&{report}\n'
)
_LINE = "builtin eval {command} <{stdin} {report}>&- {stored}>&- {input}>&- {output}>&-\n"
# A line of its own, so that an alias that the command made is in force here and not first at the
# next command, and through the same two words. The empty line that follows stays in the pipe until
# bash asks for its next command: one that has read it and not reported is beyond help.
_DONE = '{{ builtin eval __swe_done {token} "$?"; }} {errors}>&2 2>/dev/null\n\n'
_LOOK_SECONDS = 0.25
"""How often to look whether a shell that has not reported waits for its next command."""
_READ_SECONDS = 0.1
_READY_SECONDS = 30.0
_NOT_STARTED = 126
INPUT_ENDED = (
    "The running command cannot be fed: its input ended with the text it was started with. Wait "
    "for it, interrupt it or kill it."
)
_ROOM = 1 << 20
CROWDED = (
    "[There was no room for a new shell, so all that earlier commands had left running was ended.]"
)
REDIRECTED = "The command redirected the shell's own output"
DEAF = "The shell no longer runs what it is given"


@dataclass(frozen=True, slots=True)
class ShellResult:
    """How one command in the shell ended."""

    exit_code: int
    timed_out: bool = False
    note: str = ""
    """What happened to the shell itself, for whoever reads the output."""
    running: bool = False


@dataclass(slots=True)
class _Running:
    """A command that has not ended yet."""

    token: str
    earlier: set[int]
    """Processes that are not its own."""
    outgoing: dict[int, bytes]
    """What it has not taken yet, for each of our ends."""
    fed: bool
    """Its input is the pipe that can be fed, not what was given with it."""
    side: bytearray = field(default_factory=bytearray)


class _NoRoom(SandboxError):
    """No process could be started for the shell."""


class _Report(NamedTuple):
    """What the shell says after a command."""

    exit_code: int
    sound: bool
    cwd: str


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
        self._script = -1
        self._stdin = -1
        # Both ends, so that what a command leaves in it can be taken out again.
        self._input = (-1, -1)
        self._own: set[int] = set()
        self._running: _Running | None = None

    @property
    def running(self) -> bool:
        """Whether a command was left running."""
        return self._running is not None

    def run(
        self,
        command: str,
        *,
        timeout: float,
        stdin: bytes,
        env: Mapping[str, str],
        capture: Capture,
        keep_running: bool = False,
    ) -> ShellResult:
        """Run a command in the shell; its output goes to `capture`."""
        note = ""
        if self._pipes is None:
            note = self._start_anyhow()
        pipes = self._pipes
        assert pipes is not None
        earlier = self._processes() - self._own
        token = secrets.token_hex(8)
        fed = keep_running and not stdin
        line = self._line(command, token, stdin, env, fed)
        running = _Running(token, earlier, {self._script: line}, fed)
        ran = self._wait(pipes, running, capture, timeout, keep_running)
        return replace(ran, note="\n".join(filter(None, [note, ran.note]))) if note else ran

    def resume(
        self, *, stdin: bytes, interrupt: bool, kill: bool, timeout: float, capture: Capture
    ) -> ShellResult:
        """Go on with the command that was left running; see `Sandbox.resume`."""
        running, pipes = self._running, self._pipes
        assert running is not None
        assert pipes is not None
        if kill:
            return self._timed_out(capture, running.earlier, "The command was killed")
        if stdin and not running.fed:
            raise ToolError(INPUT_ENDED)
        if interrupt:
            self._keeper.call({"op": "interrupt", "spared": sorted(running.earlier)})
        if stdin:
            feed = self._input[1]
            running.outgoing[feed] = running.outgoing.get(feed, b"") + stdin
        return self._wait(pipes, running, capture, timeout, keep_running=True)

    def _wait(
        self,
        pipes: Pipes,
        running: _Running,
        capture: Capture,
        timeout: float,
        keep_running: bool,
    ) -> ShellResult:
        deadline = time.monotonic() + timeout
        while True:
            idle = self._script not in running.outgoing and not pending(self._script)
            left = deadline - time.monotonic()
            ended = wait(
                pipes,
                capture,
                # A report written before the look is in the pipe by now, and is read at once.
                timeout=_READ_SECONDS if idle else min(left, _LOOK_SECONDS),
                outgoing=running.outgoing,
                until=b"\0",
            )
            running.side += ended.side
            report = _report(running.side, running.token)
            if report is not None and ended.status is None:
                self.cwd = report.cwd
                if not report.sound:
                    return self._replace(capture, report.exit_code, REDIRECTED)
                self._running = None
                if keep_running:
                    drain(self._input[0])
                return ShellResult(report.exit_code)
            if ended.timed_out and idle:
                return self._replace(capture, -1, DEAF)
            if ended.timed_out and time.monotonic() < deadline:
                continue
            if ended.timed_out:
                if keep_running:
                    return self._leave(pipes, running)
                why = f"The command ran longer than {timeout:g} s and was killed"
                return self._timed_out(capture, running.earlier, why)
            if ended.status is not None:
                return self._died(ended)

    def _start_anyhow(self) -> str:
        """Start bash, if need be in place of all that is running; what to say about that."""
        try:
            self.start()
        except _NoRoom:
            self._keeper.call({"op": "kill", "spared": []})
            self.start()
            return CROWDED
        return ""

    def start(self) -> Pipes:
        """Start bash and wait until it answers."""
        script_in, script = os.pipe()
        output, output_in = os.pipe()
        report, report_in = os.pipe()
        status, status_in = os.pipe()
        self._script = script
        self._stdin = os.memfd_create("stdin")
        self._input = os.pipe()
        self._pipes = pipes = Pipes(output=output, status=status, side=report)
        for fd in (script, self._input[1]):
            os.set_blocking(fd, False)
        given = [status_in, script_in, output_in, report_in]
        targets = [(0, 0), (1, 1), (2, 1), (_REPORT, 2), (_STDIN, 3), (_INPUT, 4)]
        try:
            self._keeper.spawn(
                ["bash", "--noprofile", "--norc"],
                cwd=[self.cwd, self._workdir],
                env=self._env,
                fds=[*given, self._stdin, self._input[0]],
                targets=targets,
                rlimits=self._rlimits,
            )
            while given:
                os.close(given.pop())
            self._own = self._greet(pipes)
        except BaseException:
            self.close()
            for fd in given:
                os.close(fd)
            raise
        return pipes

    def background_output(self) -> int:
        """Bytes that background processes have written since the last command."""
        return pending(self._pipes.output) if self._pipes else 0

    def close(self) -> None:
        """Let go of the shell's pipes; the sandbox ends the process itself."""
        if self._pipes is not None:
            self._pipes.close()
            for fd in (self._script, self._stdin, *self._input):
                os.close(fd)
            self._pipes = self._running = None

    def _greet(self, pipes: Pipes) -> set[int]:
        token = secrets.token_hex(8)
        capture = Capture(2000)
        hello = {self._script: _hello(token)}
        ended = wait(pipes, capture, timeout=_READY_SECONDS, outgoing=hello, until=b"\0")
        report = ended.side.decode("utf-8", "replace").split()
        if len(report) < 3 or report[0] != token:
            reason = capture.text().strip() or "no answer"
            kind = _NoRoom if exit_code(ended.status or b"") == _NOT_STARTED else SandboxError
            raise kind(f"The sandbox's shell does not start: {reason}.")
        return {int(report[1]), int(report[2])}

    def _line(
        self, command: str, token: str, stdin: bytes, env: Mapping[str, str], fed: bool
    ) -> bytes:
        if stdin:
            os.ftruncate(self._stdin, 0)
            os.pwrite(self._stdin, stdin, 0)
        if "\0" in command:
            command = command.replace("\0", "")
        if env:
            names = " ".join(shlex.quote(f"{name}={value}") for name, value in env.items())
            command = f"export {names}\n{command}"
        given = f"/dev/fd/{_STDIN}" if stdin else "/dev/null"
        line = (_LINE + _DONE).format(
            command=shlex.quote(command),
            stdin=f"&{_INPUT}" if fed else given,
            report=_REPORT,
            stored=_STDIN,
            input=_INPUT,
            output=_OUTPUT,
            errors=_ERRORS,
            token=token,
        )
        return line.encode("utf-8", "surrogateescape")

    def _leave(self, pipes: Pipes, running: _Running) -> ShellResult:
        if self._running is None:
            # Room for what it says until somebody looks again.
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipes.output, fcntl.F_SETPIPE_SZ, _ROOM)
        self._running = running
        return ShellResult(-1, running=True)

    def _timed_out(self, capture: Capture, earlier: set[int], why: str) -> ShellResult:
        assert self._pipes is not None
        self._keeper.call({"op": "kill", "spared": sorted(earlier)})
        wait(self._pipes, capture, timeout=1.0)
        self.close()
        note = (
            f"[{why} with all it had started. "
            f"A new shell starts in {self.cwd}; variables and functions are gone.]"
        )
        return ShellResult(-1, timed_out=True, note=note)

    def _replace(self, capture: Capture, code: int, why: str) -> ShellResult:
        """Have a new shell in place of one that is no longer of use; processes are spared."""
        assert self._pipes is not None
        self._keeper.call({"op": "kill", "spared": sorted(self._processes() - self._own)})
        wait(self._pipes, capture, timeout=1.0)
        self.close()
        note = f"[{why}, so a new shell starts in {self.cwd}; variables and functions are gone.]"
        return ShellResult(code, note=note)

    def _died(self, ended: Ended) -> ShellResult:
        code = exit_code(ended.status or b"")
        self.close()
        note = (
            f"[The command ended the shell (exit code {code}). "
            f"A new shell starts in {self.cwd}; variables and functions are gone.]"
        )
        return ShellResult(code, note=note)


def _hello(token: str) -> bytes:
    return _HELLO.format(token=token, report=_REPORT, output=_OUTPUT, errors=_ERRORS).encode()


def _report(side: bytearray, token: str) -> _Report | None:
    """The record that carries our token."""
    for record in side.split(b"\0"):
        fields = record.decode("utf-8", "surrogateescape").split(" ", 3)
        if len(fields) == 4 and fields[0] == token:
            with contextlib.suppress(ValueError):
                return _Report(int(fields[1]), int(fields[2]) != 0, fields[3])
    return None
