"""`Job`: what of a job is open and what is done, in the process that runs it."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from agents.rollouts.attempts import Item
from agents.rollouts.budget import Meter
from agents.rollouts.job import JobFolder
from agents.rollouts.leases import Leases
from agents.rollouts.progress import Progress
from agents.rollouts.report import AttemptResult, RolloutReport
from swe_env.replay.buffer import ReplayBuffer

POLL = 0.25
"""Seconds between looks at an attempt that another run holds."""


@dataclass(slots=True, kw_only=True)
class Job:
    """One run over a job's folder; an executor does its attempts."""

    items: list[Item]
    folder: JobFolder
    leases: Leases
    buffer: ReplayBuffer | None
    meter: Meter
    progress: Progress
    draining: threading.Event = field(default_factory=threading.Event)
    """No attempt begins any more."""
    stopping: threading.Event = field(default_factory=threading.Event)
    """Those that run end at their next step."""
    todo: deque[tuple[float, Item]] = field(default_factory=deque)
    """(not before, attempt) of those that nobody in this run works on."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _results: dict[Item, AttemptResult] = field(default_factory=dict)

    def run(self, executor: Callable[[Job], None]) -> RolloutReport:
        """Have `executor` do what is not done yet."""
        started = time.monotonic()
        self._find_finished()
        self.progress.start(total=len(self.items), meter=self.meter)
        for item in self.items:
            if item in self._results:
                self.progress.update(self._results[item], skipped=True)
        skipped = len(self._results)
        try:
            with self._signals():
                executor(self)
        finally:
            self.stopping.set()
            self.progress.close()
        over = len(self._results) == len(self.items)
        return RolloutReport(
            out=str(self.folder.path),
            results=tuple(self._results[item] for item in sorted(self._results)),
            skipped=skipped,
            interrupted=not over,
            spent="" if over else self.meter.spent,
            seconds=time.monotonic() - started,
        )

    @property
    def ending(self) -> bool:
        """No attempt may begin any more."""
        return self.draining.is_set() or bool(self.meter.spent)

    def take(self) -> tuple[float, Item] | None:
        """The next open attempt and when it is due; None when there is none or none may begin."""
        if self.ending:
            return None
        with self._lock:
            return self.todo.popleft() if self.todo else None

    def later(self, item: Item) -> None:
        """Put an attempt back: another run works on it, or its worker died."""
        with self._lock:
            self.todo.append((time.monotonic() + POLL, item))

    def done(self, item: Item, result: AttemptResult) -> None:
        """Take an attempt's result."""
        with self._lock:
            self._results[item] = result
            self.progress.update(result, skipped=False)

    def store(self, identity: str, append: Callable[[ReplayBuffer], object]) -> None:
        """Put a record into the buffer, unless a run that was killed already had.

        The caller holds the folder's lock (`Leases.locked`), so that of two runs only one does.
        """
        if self.buffer is None:
            return
        self.buffer.refresh()
        if not self.buffer.has(identity):
            append(self.buffer)

    def _find_finished(self) -> None:
        stored = set() if self.buffer is None else set(self.buffer.column("id").tolist())
        for item in self.items:
            result = self.folder.result(*item)
            if result is None or result.failure:
                continue
            if self.buffer is None or result.trajectory_id in stored:
                self._results[item] = result
                self.meter.found(result)
                self._sweep(item)
        self.todo.extend((0.0, item) for item in self.items if item not in self._results)

    def _sweep(self, item: Item) -> None:
        """Remove the lease of a run that was killed between its last write and its release."""
        lease = self.folder.attempt(*item) / "lease"
        if lease.exists() and self.leases.claim(lease):
            self.leases.release(lease)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """First Ctrl-C: no new episodes; second: stop the running ones at their next step."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(_number: int, _frame: FrameType | None) -> None:
            if self.draining.is_set():
                self.stopping.set()
                raise KeyboardInterrupt
            self.draining.set()
            self.progress.draining()

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
