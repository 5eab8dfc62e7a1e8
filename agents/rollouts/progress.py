"""What a run tells about itself while it goes on: a protocol, silence, a live line on stderr."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Protocol

from agents.rollouts.report import AttemptResult


class Progress(Protocol):
    """Told what happens in a run; calls never overlap."""

    def start(self, *, total: int) -> None:
        """The run begins."""
        ...

    def update(self, result: AttemptResult, *, skipped: bool) -> None:
        """An attempt is done (`skipped`: it was found finished)."""
        ...

    def draining(self) -> None:
        """No new episode begins; the running ones end."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class NoProgress:
    """Says nothing."""

    def start(self, *, total: int) -> None:
        """Nothing."""

    def update(self, result: AttemptResult, *, skipped: bool) -> None:
        """Nothing."""

    def draining(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class LiveProgress:
    """A bar on stderr: done, resolved, failures by kind, tokens a second, time left."""

    def __init__(self, title: str = "rollouts") -> None:
        self._title = title
        self._counts: Counter[str] = Counter()
        self._tokens = 0

    def start(self, *, total: int) -> None:
        """Show the bar."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._began = time.monotonic()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: Any = self._bar.add_task(self._title, total=total, detail="")
        self._bar.start()

    def update(self, result: AttemptResult, *, skipped: bool) -> None:
        """Count one attempt."""
        self._counts["resolved"] += result.resolved
        self._counts["skipped"] += skipped
        if result.failure:
            self._counts[f"failed: {result.failure}"] += 1
        if not skipped:
            self._tokens += result.tokens
        self._bar.update(self._task, advance=1, detail=self._detail())

    def draining(self) -> None:
        """Say that the run is ending."""
        self._bar.update(self._task, description="ending (Ctrl-C again stops at once)")

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._bar.stop()

    def _detail(self) -> str:
        parts = [f"{self._counts['resolved']} resolved"]
        parts += [f"{n} {name}" for name, n in self._counts.items() if n and name != "resolved"]
        if self._tokens:
            parts.append(f"{self._tokens / (time.monotonic() - self._began):.0f} tokens/s")
        return ", ".join(parts)
