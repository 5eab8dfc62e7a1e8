"""Seconds and memory of one side of `learner.py`, taken the same way on every side."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from pathlib import Path


def resident(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


class Meter:
    """Counts from `start` on: what was there before (weights, imports) is not this run's."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._base = self._peak = 0
        self._last = self._begun = self._cpu = 0.0

    def start(self) -> None:
        """Give freed memory back, let the kernel's peak begin anew, start the clocks."""
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._base = resident("VmRSS")
        self._last, self._begun = time.perf_counter(), time.process_time()

    def step(self) -> None:
        """An optimizer step is done."""
        now = time.perf_counter()
        self.steps.append(now - self._last)
        self._last, self._cpu = now, time.process_time() - self._begun
        self._peak = resident("VmHWM") - self._base

    def figures(self) -> dict[str, object]:
        """Seconds of each step and processor seconds of all; bytes at the start, most above it."""
        return {
            "seconds": self.steps, "cpu_seconds": self._cpu,
            "base_bytes": self._base, "peak_bytes": self._peak,
        }  # fmt: skip
