"""Time things side by side: warm-up, interleaved rounds, medians, quartiles; and memory."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

Side = Callable[[], float]
"""Does one thing and returns the seconds it took, by its own clock."""


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of one side's rounds."""

    median: float
    q1: float
    q3: float
    least: float
    seconds: tuple[float, ...]
    """Of each round in order."""

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        """The summary of some rounds."""
        q1, median, q3 = statistics.quantiles(seconds, n=4, method="inclusive")
        values = (median, q1, q3, min(seconds))
        return cls(*(round(value * 1000, 4) for value in values), tuple(seconds))

    def plain(self) -> dict[str, float]:
        """As JSON has it: without the single rounds."""
        summary = {"median": self.median, "q1": self.q1, "q3": self.q3, "least": self.least}
        return {**summary, "rounds": len(self.seconds)}

    def share_of(self, other: Times) -> float:
        """Median over rounds of this side's time as a share of the other's in the same round."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)

    def beyond(self, other: Times) -> float:
        """Median over rounds of the milliseconds that this side took more than the other."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(mine - theirs for mine, theirs in pairs) * 1000


def timed(act: Callable[[], object], before: Callable[[], object] | None = None) -> Side:
    """A side that times `act`; `before` is done each time and not timed."""

    def side() -> float:
        if before is not None:
            before()
        started = time.perf_counter()
        act()
        return time.perf_counter() - started

    return side


def interleave(sides: Mapping[str, Side], *, rounds: int, warm_up: int = 2) -> dict[str, Times]:
    """Play all sides in turn, round after round, so that all see the same machine.

    Each round begins with another side; the warm-up rounds are dropped.
    """
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            spent = sides[name]()
            if number >= warm_up:
                seconds[name].append(spent)
    return {name: Times.of(values) for name, values in seconds.items()}


def family(root: int) -> Iterator[int]:
    """A process and everything below it."""
    yield root
    for thread in Path(f"/proc/{root}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in thread.read_text().split():
                yield from family(int(child))


def memory_of(processes: Iterator[int]) -> int:
    """Bytes that these processes hold, shared pages by their share (PSS)."""
    total = 0
    for pid in processes:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def kernel_memory() -> int:
    """Bytes of kernel structures (slab, page tables, stacks), of the whole machine."""
    rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    names = ("Slab", "PageTables", "KernelStack", "Percpu")
    return sum(int(rows[name].split()[0]) * 1024 for name in names if name in rows)
