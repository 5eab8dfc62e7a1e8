"""The persistent bash of one episode, in one long-lived exec of its container."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from swe_env.errors import ToolError
from swe_env.sandbox.docker import scripts
from swe_env.sandbox.docker.engine import Engine
from swe_env.sandbox.docker.listener import Listener
from swe_env.sandbox.docker.stream import Stream
from swe_env.sandbox.output import Capture
from swe_env.sandbox.shell import DEAF, INPUT_ENDED, REDIRECTED

_READY_SECONDS = 60.0
_LOOK_SECONDS = 1.0
_FEED_SECONDS = 0.01
_SURE_SECONDS = 0.5
"""Between two looks at what a shell has read, so that what is on its way to us or to it arrives."""
_NOTHING_SINCE = 1 << 62
"""A tick of the boot clock at which nothing has been started yet."""

Signal = Callable[[str, int, int], None]
"""Sends a signal (``KILL``, ``INT``) to what was started since a tick and to the process with that
number; see `scripts.KILL`."""
Unread = Callable[[int], bool]
"""Whether the shell with that number has not read all it was given; see `scripts.UNREAD`."""


class NoShell(Exception):
    """No bash could be started, though the container runs; the reason."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    exit_code: int
    timed_out: bool = False
    note: str = ""
    """What happened to the shell itself, for whoever reads the output."""
    struck: Mapping[str, int] = field(default_factory=dict)
    """See `Listener.struck`."""
    side: bytes = b""
    running: bool = False


def wait(
    engine: Engine,
    exec_id: str,
    stream: Stream,
    listener: Listener,
    *,
    until: float,
    tick: Callable[[], bool] = lambda: False,
    lost: Callable[[], bool] = lambda: False,
    feed: Callable[[], bool] = lambda: False,
) -> str:
    """Pump until the command's end (``done``), its process's (``ended``), or time is up (``late``).

    Whoever still holds the command's output does not delay it. `tick` and `lost` are called now and
    then and end the wait (``stopped``, ``lost``) when they say so; `feed` often, as long as it says
    that it must.
    """
    looked = time.monotonic()
    while True:
        short = _FEED_SECONDS if feed() else _LOOK_SECONDS
        how = stream.pump(listener, until=min(until, time.monotonic() + short))
        now = time.monotonic()
        if how != "late" or now >= until:
            return how
        if now - looked < _LOOK_SECONDS:
            continue
        looked = now
        if listener.code is not None:
            return "done"  # its output's end was swallowed by something that reopened it
        if not engine.exec_state(exec_id)[0]:
            stream.pump(listener, until=time.monotonic() + 0.2)
            return "done" if listener.code is not None else "ended"
        if tick():
            return "stopped"
        if lost():
            return "lost"
        if listener.code is not None:
            return "done"


def final_code(engine: Engine, exec_id: str) -> int:
    """Exit code of an exec whose stream has ended."""
    for _ in range(200):
        running, code = engine.exec_state(exec_id)
        if not running:
            return code
        time.sleep(0.01)
    return -1


class Shell:
    """A bash whose folder, variables and functions last from command to command."""

    def __init__(
        self,
        engine: Engine,
        container: str,
        *,
        workdir: str,
        cwd: str,
        signal: Signal,
        unread: Unread,
    ) -> None:
        """The shell starts on first use."""
        self.cwd = cwd
        self._engine = engine
        self._container = container
        self._workdir = workdir
        self._signal = signal
        self._unread = unread
        self._stream: Stream | None = None
        self._exec = ""
        self._pid = 0
        self._began = self._look = 0.0
        self._early = b""
        self._running: Listener | None = None
        self._feeder: Stream | None = None
        self._food = b""
        self._fed = False

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
        tick: Callable[[], bool],
        keep_running: bool = False,
    ) -> Ended:
        """Run a command in the shell; its output goes to `capture`.

        Raises:
            NoShell: bash does not start.
        """
        stream = self._stream or self._start()
        token = secrets.token_hex(16)
        capture.feed(self._early)
        self._early = b""
        self._food = b""
        self._fed = keep_running and not stdin
        self._began = time.monotonic()
        self._look = self._began + _LOOK_SECONDS
        stream.queue(scripts.line(command, token, stdin, env, fed=self._fed))
        return self._wait(Listener(token, capture), timeout, tick, keep_running)

    def resume(
        self,
        *,
        stdin: bytes,
        interrupt: bool,
        kill: bool,
        timeout: float,
        capture: Capture,
        tick: Callable[[], bool],
    ) -> Ended:
        """Go on with the command that was left running; see `Sandbox.resume`."""
        listener = self._running
        assert listener is not None
        listener.go_on(capture)
        if kill:
            return self._end(listener, "was killed", timed_out=True)
        if stdin and not self._fed:
            raise ToolError(INPUT_ENDED)
        if interrupt:
            self._signal("INT", listener.since, listener.pid)
        self._food += stdin
        return self._wait(listener, timeout, tick, keep_running=True)

    def close(self) -> None:
        """Let go of the shell; it ends as its input does."""
        self._running = None
        self._unfeed()
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _wait(
        self, listener: Listener, timeout: float, tick: Callable[[], bool], keep_running: bool
    ) -> Ended:
        assert self._stream is not None
        how = wait(
            self._engine,
            self._exec,
            self._stream,
            listener,
            until=time.monotonic() + timeout,
            tick=tick,
            lost=lambda: self._lost(listener),
            feed=lambda: self._feed(listener),
        )
        if how == "late" and keep_running and self._lost(listener):
            how = "lost"
        if listener.code is not None:
            self.cwd = listener.cwd or self.cwd
            if not listener.sound:
                return self._replace(listener, listener.code, REDIRECTED)
            self._early = listener.rest
            self._running = None
            self._unfeed()
            return Ended(listener.code, struck=listener.struck)
        if how == "lost":
            return self._replace(listener, -1, DEAF)
        if how == "ended":
            listener.flush()
            return self._died()
        if how == "late" and keep_running:
            self._running = listener
            return Ended(-1, running=True)
        late = how == "late"
        why = f"ran longer than {timeout:g} s" if late else "went over the disk limit"
        return self._end(listener, f"{why} and was killed", timed_out=late)

    def _lost(self, listener: Listener) -> bool:
        """Whether the shell has read all it was given and told nothing; asked ever more rarely."""
        stream, now = self._stream, time.monotonic()
        assert stream is not None
        if stream.sending or now < self._look:
            return False
        self._look = now + (now - self._began)
        for _ in range(2):
            if self._unread(self._pid):
                return False
            stream.pump(listener, until=time.monotonic() + _SURE_SECONDS)
            if listener.code is not None:
                return False
        return True

    def _replace(self, listener: Listener, code: int, why: str) -> Ended:
        """Have a new shell in place of one that is no longer of use; processes are spared."""
        self._kill(listener, _NOTHING_SINCE)
        note = f"[{why}, so a new shell starts in {self.cwd}; variables and functions are gone.]"
        return Ended(code, note=note, struck=listener.struck)

    def _kill(self, listener: Listener, since: int) -> None:
        """End the shell and what was started since a tick, and take the last output."""
        stream = self._stream
        self._signal("KILL", since, self._pid)
        if stream is not None:
            stream.pump(listener, until=time.monotonic() + 0.3)
        listener.flush()
        self.close()

    def _end(self, listener: Listener, why: str, *, timed_out: bool) -> Ended:
        self._kill(listener, listener.since or _NOTHING_SINCE)
        note = f"[The command {why} with all it had started. {self._anew()}]"
        return Ended(-1, timed_out=timed_out, note=note)

    def _feed(self, listener: Listener) -> bool:
        """Pass on what the running command is fed; whether there is more to do."""
        if self._food and listener.since and listener.code is None:
            if self._feeder is None:
                argv = [*scripts.FEED, str(listener.pid)]
                _, self._feeder = self._engine.exec(self._container, argv)
                self._feeder.queue(b"\n")
            self._feeder.queue(self._food)
            self._food = b""
        if self._feeder is not None:
            self._feeder.pump(lambda *_: False, until=0.0)
            if not self._feeder.open:
                self._unfeed()
        return bool(self._food) or (self._feeder is not None and self._feeder.sending)

    def _unfeed(self) -> None:
        self._food = b""
        if self._feeder is not None:
            self._feeder.close()
            self._feeder = None

    def _start(self) -> Stream:
        token = secrets.token_hex(16)
        capture = Capture(2000)
        listener = Listener(token, capture)
        self._exec, stream = self._engine.exec(self._container, scripts.SHELL)
        stream.queue(scripts.hello(token, self.cwd, self._workdir))
        if stream.pump(listener, until=time.monotonic() + _READY_SECONDS) != "done":
            stream.close()
            listener.flush()
            raise NoShell(capture.text().strip() or "it gives no answer")
        self.cwd = listener.cwd or self.cwd
        self._stream, self._pid = stream, listener.pid
        return stream

    def _died(self) -> Ended:
        code = final_code(self._engine, self._exec)
        self.close()
        note = f"[The command ended the shell (exit code {code}). {self._anew()}]"
        return Ended(code, note=note)

    def _anew(self) -> str:
        return f"A new shell starts in {self.cwd}; variables and functions are gone."
