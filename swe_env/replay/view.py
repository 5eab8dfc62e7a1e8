"""`View`: some records of a buffer, chosen by their columns; bodies are read when asked for."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from swe_env.errors import ConfigError, ReplayError
from swe_env.replay.frames import Row
from swe_env.replay.index import Condition, Entry, Index, Positions
from swe_env.replay.trajectory import Trajectory

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What a buffer or view holds, from its columns alone."""

    records: int
    tasks: int
    resolved: int
    finished: int
    graded: int
    failures: dict[str, int]
    """Infrastructure failures by kind: no evidence about the agent."""
    truncations: dict[str, int]
    agents: dict[str, int]
    agent_steps: int
    tokens: int
    bytes: int
    """Compressed size."""


class Records(ABC):
    """The reading half that `ReplayBuffer` and `View` share."""

    @abstractmethod
    def snapshot(self) -> tuple[Index, Positions]:
        """The index and the positions of these records in it; neither changes later."""

    @abstractmethod
    def read(self, entry: Entry) -> Trajectory:
        """One record.

        Raises:
            ReplayError: it is damaged or of an unknown schema; names shard and offset.
        """

    def __len__(self) -> int:
        return len(self.snapshot()[1])

    def __iter__(self) -> Iterator[Trajectory]:
        """Every readable record; a damaged one is logged by shard and offset and skipped."""
        index, positions = self.snapshot()
        for position in positions:
            trajectory = self._try(index.entry(int(position)))
            if trajectory is not None:
                yield trajectory

    @overload
    def __getitem__(self, key: int) -> Trajectory: ...
    @overload
    def __getitem__(self, key: slice) -> View: ...
    def __getitem__(self, key: int | slice) -> Trajectory | View:
        index, positions = self.snapshot()
        if isinstance(key, slice):
            return View(self, index, positions[key])
        return self.read(index.entry(int(positions[key])))

    def sample(self, n: int, seed: int, *, replacement: bool = False) -> list[Trajectory]:
        """`n` records drawn uniformly; the same ones for the same set of records and seed.

        The draw goes by the records' content ids, so neither the number of writers nor their timing
        changes it. Damaged records are logged and replaced by the next in the draw.

        Raises:
            ConfigError: there are fewer than `n` records and `replacement` is off.
        """
        index, positions = self.snapshot()
        order = index.by_id()
        ordered = order if len(positions) == len(order) else order[np.isin(order, positions)]
        if n > len(ordered) and not (replacement and len(ordered)):
            raise ConfigError(f"Cannot sample {n} of {len(ordered)} records without replacement.")
        rng = np.random.default_rng(seed)
        if replacement:
            drawn = ordered[rng.integers(len(ordered), size=n)]
            found = (self._try(index.entry(int(p))) for p in drawn)
            return [trajectory for trajectory in found if trajectory is not None]
        sampled: list[Trajectory] = []
        for position in rng.permutation(ordered):
            if len(sampled) == n:
                break
            trajectory = self._try(index.entry(int(position)))
            if trajectory is not None:
                sampled.append(trajectory)
        return sampled

    def filter(
        self, predicate: Callable[[Row], bool] | None = None, /, **columns: Condition
    ) -> View:
        """The records whose columns fit; no body is read and nothing is copied.

        Args:
            predicate: asked with each record's `Row`, after `columns` have narrowed them down.
            columns: column name → a value, a collection of values, or a function of one value.

        Raises:
            ConfigError: there is no such column.
        """
        index, positions = self.snapshot()
        positions = index.select(positions, columns)
        if predicate is not None:
            kept = [predicate(index.entry(int(p)).row) for p in positions]
            positions = positions[np.array(kept, dtype=bool)]
        return View(self, index, positions)

    def group_by_task(self) -> dict[str, View]:
        """instance_id → its records, in order of first appearance."""
        index, positions = self.snapshot()
        codes = index.table["instance_id"][positions]
        order = np.argsort(codes, kind="stable")
        ends = np.flatnonzero(np.diff(codes[order])) + 1
        groups = sorted(np.split(order, ends), key=lambda g: int(g[0])) if len(order) else []
        names = index.texts
        return {names[codes[g[0]]]: View(self, index, positions[g]) for g in groups}

    def has(self, identity: str) -> bool:
        """Whether a record of that trajectory id is here."""
        index, positions = self.snapshot()
        return bool((index.table["id"][positions] == identity.encode()).any())

    def rows(self) -> Iterator[Row]:
        """The records' index rows, in order; bodies are not read."""
        index, positions = self.snapshot()
        for position in positions:
            yield index.entry(int(position)).row

    def column(self, name: str) -> npt.NDArray[Any]:
        """One column of these records.

        Raises:
            ConfigError: there is no such column.
        """
        index, positions = self.snapshot()
        return index.column(name, positions)

    def stats(self) -> Stats:
        """Counts, from the columns alone."""
        index, positions = self.snapshot()
        table = index.table[positions]

        def counts(name: str) -> dict[str, int]:
            found = Counter(index.texts[code] for code in table[name].tolist())
            return {text: found[text] for text in sorted(found) if text}

        return Stats(
            records=len(table),
            tasks=len(np.unique(table["instance_id"])),
            resolved=int(table["resolved"].sum()),
            finished=int(table["finished"].sum()),
            graded=int(table["graded"].sum()),
            failures=counts("failure"),
            truncations=counts("truncation"),
            agents=counts("agent"),
            agent_steps=int(table["n_agent_steps"].sum()),
            tokens=int(table["n_tokens"].sum()),
            bytes=int(table["length"].sum()),
        )

    def _try(self, entry: Entry) -> Trajectory | None:
        try:
            return self.read(entry)
        except ReplayError as error:
            log.warning("Skipped: %s", error)
            return None


class View(Records):
    """Some records of a buffer, as they were when the view was made."""

    def __init__(self, source: Records, index: Index, positions: Positions) -> None:
        self._source = source
        self._index = index
        self._positions = positions

    def snapshot(self) -> tuple[Index, Positions]:
        """The index and the positions of these records in it; neither changes later."""
        return self._index, self._positions

    def read(self, entry: Entry) -> Trajectory:
        """One record (see `Records.read`)."""
        return self._source.read(entry)

    def __repr__(self) -> str:
        return f"View({len(self)} records of {self._source!r})"
