"""Test server of the task generator: runs in the package's own Python, one fork per request.

Started as a script (`python probe.py`), so that it needs nothing but pytest and coverage. pytest is
imported once; each request is a forked child that runs the tests it names in the working folder
and answers one JSON line. It runs the code of packages that a user chose to make tasks from, in
no sandbox: only without network where the kernel allows that.
"""

from __future__ import annotations

import _lsprof
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import pathlib
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from swe_env.tasks.synth import facts
else:
    import facts

# The script's own folder was first on the path; it must not hide a module of the package.
sys.path.pop(0)

MEMORY = 3 << 30
WAITING = 4
"""Seconds that a run may take for each second it may compute: some tests sleep, and the machine may
be shared."""


class Recorder:
    """A pytest plugin that keeps outcomes, durations, calls, what failures show, and coverage."""

    def __init__(self, root: str, details: int, cover: Any) -> None:
        self.root = root
        self.details = details
        self.outcomes: dict[str, str] = {}
        self.durations: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.failures: dict[str, dict[str, Any]] = {}
        self.broken: dict[str, str] = {}
        self.cover = cover
        # cProfile's own counter: what a test calls, of Python and of C, at the speed of C.
        self.counter = _lsprof.Profiler(subcalls=False, builtins=True)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Lines and calls from here on are this test's."""
        if self.cover is not None:
            self.cover.switch_context(item.nodeid)
        with contextlib.suppress(ValueError):  # a test before left its own profiler on
            self.counter.enable()
        try:
            return (yield)
        finally:
            self.counter.disable()
            if self.cover is not None:
                self.calls[item.nodeid] = self.counted()
                self.counter.clear()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep why a file could not be imported."""
        lines = [line[1:].strip() for line in report.longreprtext.splitlines() if line[:1] == "E"]
        if report.failed and lines:
            self.broken[report.nodeid] = lines[-1]

    def counted(self) -> int:
        """Calls since the counter was cleared."""
        return sum(entry.callcount for entry in self.counter.getstats())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Keep the outcome, the time, and what a failure shows."""
        report = yield
        node = item.nodeid
        self.durations[node] = self.durations.get(node, 0.0) + call.duration
        if report.when == "call" or report.outcome != "passed":
            earlier = self.outcomes.get(node)
            if earlier in (None, "passed"):
                self.outcomes[node] = outcome(report)
        room = len(self.failures) < self.details and node not in self.failures
        if room and report.failed and call.excinfo is not None:
            with contextlib.suppress(Exception):
                self.failures[node] = facts.of(item, call.excinfo, self.root)
        return report


def outcome(report: pytest.TestReport) -> str:
    """Name of a report's outcome, as swe_env.types.Outcome has it."""
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    if report.failed:
        return "failed" if report.when == "call" else "error"
    return report.outcome


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run the tests of a request in this process and return the answer."""
    cover = None
    if request.get("cover"):
        import coverage

        cover = coverage.Coverage(
            data_file=None, config_file=False, include=[request["cwd"] + "/*"]
        )
        cover.start()
    recorder = Recorder(request["cwd"], request.get("details", 0), cover)
    code = pytest.main(request["args"], plugins=[recorder])
    answer = {
        "code": int(code),
        "outcomes": recorder.outcomes,
        "durations": recorder.durations,
        "calls": recorder.calls or {"": recorder.counted()},
        "failures": recorder.failures,
        "broken": recorder.broken,
    }
    if cover is not None:
        cover.stop()
        answer["contexts"] = contexts(cover.get_data(), request["cwd"])
    return answer


def contexts(data: Any, root: str) -> dict[str, dict[str, list[str]]]:
    """Path → line → ids of the tests that ran it ("" is what importing ran)."""
    found = {}
    for path in data.measured_files():
        if path.startswith(root + os.sep):
            by_line = data.contexts_by_lineno(path)
            found[os.path.relpath(path, root)] = {str(k): v for k, v in by_line.items() if v}
    return found


def child(request: dict[str, Any], channel: int) -> None:
    """Everything a forked child does; never returns."""
    code = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # Time on the processor, which other programs on the machine do not stretch.
        busy = int(request["timeout"]) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (busy, busy + 1))
        os.chdir(request["cwd"])
        # Compiled files are kept from the pristine run only: a mutated file must never be one.
        sys.dont_write_bytecode = not request["warm"]
        sys.argv = ["pytest"]
        data = json.dumps(run(request)).encode()
        data = struct.pack("<Q", len(data)) + data
        while data:
            data = data[os.write(channel, data) :]
        code = 0
    finally:
        os._exit(code)


def receive(channel: int, deadline: float) -> dict[str, Any] | None:
    """The child's answer, or None when it died, the time is over, or nobody waits for it.

    Whoever asks sends nothing before the answer: what can be read from it then is its end.
    """
    data = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or channel not in select.select([channel, 0], [], [], left)[0]:
            return None
        part = os.read(channel, 1 << 20)
        if not part:
            return None
        data += part
        if len(data) >= 8 and len(data) >= 8 + struct.unpack("<Q", data[:8])[0]:
            answer: dict[str, Any] = json.loads(data[8:])
            return answer


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Fork, wait, kill what is left."""
    reading, writing = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        child(request, writing)
    os.close(writing)
    answer = receive(reading, started + WAITING * request["timeout"])
    os.close(reading)
    for victim in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            victim(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if answer is None:
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        late = time.monotonic() - started >= WAITING * request["timeout"]
        answer = {"died": "timeout" if late or ended == signal.SIGXCPU else "crash"}
    return answer


def leave_network() -> None:
    """An own network namespace with only a loopback, as the sandbox will have."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    user, net = 0x10000000, 0x40000000
    if libc.unshare(net if uid == 0 else net | user) != 0:
        return
    if uid != 0:
        own = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
        for name, text in own.items():
            pathlib.Path("/proc/self", name).write_text(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sh22x", b"lo", 1))


def settle() -> None:
    """Do once what every run would do again: import pytest's parts, and age what is there.

    At its end pytest collects garbage several times over; frozen objects cost it nothing.
    """
    from _pytest.config import default_plugins

    for name in default_plugins:
        importlib.import_module(f"_pytest.{name}")
    gc.collect()
    gc.freeze()


def main() -> None:
    """Answer one JSON line for each JSON line, until the input ends."""
    with contextlib.suppress(OSError, AttributeError):
        leave_network()
    settle()
    for line in sys.stdin:
        answer = serve(json.loads(line))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
