"""What a run tells about itself while it goes on: a protocol, silence, a table on stderr."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from agents.rollouts.budget import Meter
from agents.rollouts.report import AttemptResult

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table


class Progress(Protocol):
    """Told what happens in a run; two of these calls never overlap, but for `draining`."""

    def start(self, *, total: int, meter: Meter) -> None:
        """The run begins; `meter` counts what its episodes use, while they run."""
        ...

    def update(self, result: AttemptResult, *, skipped: bool) -> None:
        """An attempt is done (`skipped`: it was found finished)."""
        ...

    def draining(self) -> None:
        """No new episode begins; the running ones end.

        Called by a signal's handler, so maybe in the middle of another call: it takes no lock.
        """
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class NoProgress:
    """Says nothing."""

    def start(self, *, total: int, meter: Meter) -> None:
        """Nothing."""

    def update(self, result: AttemptResult, *, skipped: bool) -> None:
        """Nothing."""

    def draining(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class LiveProgress:
    """On stderr: attempts, resolved, failures by kind, tokens a second, time left.

    A terminal shows a live table; anything else gets a line now and then, and a last one.

    Args:
        title: stands above the table and before each line.
        every: seconds between two lines.
        clock: seconds that pass.
    """

    def __init__(
        self,
        title: str = "rollouts",
        *,
        every: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._every, self._clock = title, every, clock
        self._lock = threading.Lock()
        self._done = self._skipped = self._resolved = 0
        self._failures: Counter[str] = Counter()
        self._ending = False
        self._closed = threading.Event()
        self._live: Live | None = None
        self._teller: threading.Thread | None = None

    def start(self, *, total: int, meter: Meter) -> None:
        """Show the table, or begin to tell."""
        from rich.console import Console
        from rich.live import Live

        self._total, self._meter = total, meter
        self._began, self._before = self._clock(), meter.tokens
        self._console = Console(stderr=True)
        if self._console.is_terminal:
            self._live = Live(
                console=self._console, get_renderable=self._table, refresh_per_second=2
            )
            self._live.start()
        else:
            self._teller = threading.Thread(target=self._tell, name="progress", daemon=True)
            self._teller.start()

    def update(self, result: AttemptResult, *, skipped: bool) -> None:
        """Count one attempt."""
        with self._lock:
            self._done += 1
            self._skipped += skipped
            self._resolved += result.resolved
            if result.failure:
                self._failures[result.failure] += 1

    def draining(self) -> None:
        """Say that the run is ending."""
        self._ending = True

    def close(self) -> None:
        """Leave the last state there."""
        self._closed.set()
        if self._live is not None:
            self._live.stop()
        if self._teller is not None:
            self._teller.join()
            self._print()

    def figures(self) -> dict[str, str]:
        """What is shown, by name."""
        with self._lock:
            done, skipped, resolved = self._done, self._skipped, self._resolved
            failures = dict(self._failures)
        elapsed = self._clock() - self._began
        scored, played = done - sum(failures.values()), done - skipped
        left = _time(elapsed / played * (self._total - done)) if played else "?"
        before = {"finished before": str(skipped)} if skipped else {}
        return {
            "attempts": f"{done}/{self._total}",
            **before,
            "resolved": f"{resolved} ({resolved / scored:.0%})" if scored else "0",
            "failures": " ".join(f"{kind} {n}" for kind, n in failures.items()) or "0",
            "tokens/s": f"{(self._meter.tokens - self._before) / max(elapsed, 0.001):.0f}",
            "elapsed": _time(elapsed),
            "left": left,
        }

    def _table(self) -> Table:
        from rich import box
        from rich.table import Table

        figures = self.figures()
        table = Table(*figures, title=self._heading(), title_justify="left", box=box.SIMPLE)
        table.add_row(*figures.values())
        return table

    def _heading(self) -> str:
        return (
            f"{self._title} (ending; Ctrl-C again stops at once)" if self._ending else self._title
        )

    def _tell(self) -> None:
        while not self._closed.wait(self._every):
            self._print()

    def _print(self) -> None:
        told = ", ".join(f"{name} {value}" for name, value in self.figures().items())
        line = f"{self._heading()}: {told}"
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
