"""`Graphs`: decoding steps recorded as CUDA graphs, one for each number of rows.

A step's kernels take a fraction of the time in which Python launches them one by one; a graph
launches all of them at once. It reads and writes the same memory each time.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

log = logging.getLogger(__name__)

_FIRST = 2
"""Steps of a new number of rows that are run by Python before a graph of it is captured."""
_WORTH = 16
"""Steps of a new number of rows that a graph of more rows takes before one of it is captured."""
_CAPTURING = threading.Lock()
"""PyTorch allows one capture at a time in a process."""
_APART = 0.02
"""Most by which a graph's logits may differ from those of the same step run by Python, as a share
of the largest."""

Work = Callable[[int], torch.Tensor]
"""A decoding step of that many rows from inputs that stay in place: logits (rows, vocabulary)."""


class Runner(Protocol):
    """Runs decoding steps of fixed shapes."""

    replayed: int
    """Steps that were replays of a graph."""

    def run(self, rows: int, work: Work) -> torch.Tensor:
        """Logits of a step of at least `rows` rows; valid until the next step."""

    def clear(self) -> None:
        """The memory that steps read and write is going to be another."""


class Plain:
    """Runs each step by Python, as it is."""

    def __init__(self) -> None:
        self.replayed = 0

    def run(self, rows: int, work: Work) -> torch.Tensor:
        """Logits (rows, vocabulary)."""
        return work(rows)

    def clear(self) -> None:
        """Nothing is kept."""


class Graphs:
    """Captures a step when its number of rows has come up some times, and replays it from then on.

    What cannot be captured, or gives other logits when replayed, is run as it is, for good.
    """

    def __init__(self, device: torch.device) -> None:
        self.replayed = 0
        self._device = device
        self._works, self._watched = True, False
        self._captured: dict[int, tuple[Any, torch.Tensor]] = {}
        self._wanted: Counter[int] = Counter()
        self._stream: Any = None
        self._pool: Any = None

    def run(self, rows: int, work: Work) -> torch.Tensor:
        """Logits of a step of at least `rows` rows; valid until the next step."""
        size = self._choose(rows, work) if self._works else None
        if size is None:
            return work(rows)
        graph, logits = self._captured[size]
        graph.replay()
        self.replayed += 1
        return logits

    def clear(self) -> None:
        """Forget all graphs."""
        if self._captured:
            with _CAPTURING:
                torch.cuda.synchronize(self._device)
        self._captured.clear()
        self._wanted.clear()
        self._pool = None  # a pool whose graphs are all gone cannot be used again

    def _choose(self, rows: int, work: Work) -> int | None:
        """The size of the graph to replay, captured now where it is worth that; None for none."""
        if rows in self._captured:
            return rows
        larger = [size for size in self._captured if size > rows]
        self._wanted[rows] += 1
        if self._wanted[rows] <= (_WORTH if larger else _FIRST):
            return min(larger, default=None)
        return rows if self._try_capture(rows, work) else None

    def _try_capture(self, rows: int, work: Work) -> bool:
        current = None
        try:
            if not self._watched:
                watch(work, rows)
                self._watched = True
            current = torch.cuda.current_stream(self._device)
            with _CAPTURING:
                self._captured[rows] = self._capture(rows, work)
        except Exception as error:
            if current is not None:
                torch.cuda.set_stream(current)  # a capture that fails leaves its own in place
            self._captured.clear()
            self._works = False
            log.warning("Decoding steps are not run as CUDA graphs from here on: %s", error)
        return self._works

    def _capture(self, rows: int, work: Work) -> tuple[Any, torch.Tensor]:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(2):  # libraries choose kernels and take memory in their first calls
                wanted = work(rows)
        current.wait_stream(self._stream)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            logits = work(rows)
        graph.replay()
        apart = (logits - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6)
        if not float(apart) <= _APART:  # not a number is not
            raise RuntimeError(f"replayed logits are off by {float(apart):.3g} of the largest")
        return graph, logits


def watch(work: Work, rows: int) -> None:
    """Run a step and see whether it can be captured.

    A capture that fails half-way leaves PyTorch's allocator and random generator in its state, so
    what is bound to fail is found before.

    Raises:
        RuntimeError: an operation waits for the device, or makes a shape of numbers found there.
    """
    with _Watch():  # type: ignore[no-untyped-call]
        work(rows)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        with self:  # in inference mode composed operations arrive whole
            found = func.decompose(*args, **given)
        if found is not NotImplemented:
            return found
        found = func(*args, **given)
        if _waits(func, args, found):
            raise RuntimeError(f"the model uses {func}, which waits for the device")
        return found


def _waits(func: Any, args: tuple[Any, ...], found: Any) -> bool:
    aten = torch.ops.aten
    if func.overloadpacket is aten.index:
        return any(index is not None and not index.dtype.is_signed for index in args[1])
    if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags):
        return True
    if func.overloadpacket not in (aten._to_copy, aten.copy_):
        return False
    both = [part for part in (*args, found) if isinstance(part, torch.Tensor)]
    return len({part.device for part in both}) > 1
