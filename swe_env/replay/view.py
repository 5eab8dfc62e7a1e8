"""`View`: some records of a buffer, chosen by their columns; bodies are read when asked for."""

from __future__ import annotations

import gc
import hashlib
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from swe_env.errors import ConfigError, ReplayError
from swe_env.replay.frames import Row, decode
from swe_env.replay.index import Condition, Entry, Index, Positions
from swe_env.replay.sampling import (
    drawing,
    group_codes,
    record_weights,
    strata,
    without_replacement,
)
from swe_env.replay.trajectory import Trajectory

log = logging.getLogger(__name__)
_BATCH = 512
"""Records that `sample` fetches at once from a store: their texts are in memory together."""
_COLLECT = 4
"""Records between two young collections."""


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
    schemas: dict[int, int]
    """Records by schema version; those of a newer one are kept and not read."""
    agent_steps: int
    tokens: int
    bytes: int
    """Compressed size."""


class Records(ABC):
    """The reading half that `ReplayBuffer` and `View` share."""

    readers: int
    """Records of a sample that are fetched at the same time."""

    @abstractmethod
    def snapshot(self) -> tuple[Index, Positions]:
        """The index and the positions of these records in it; neither changes later."""

    @abstractmethod
    def read(self, entry: Entry) -> Trajectory:
        """One record.

        Raises:
            ReplayError: it is damaged or of an unknown schema; names shard and offset.
        """

    @abstractmethod
    def raw(self, entry: Entry) -> bytes:
        """One record's bytes as they were appended, whatever its schema.

        Raises:
            ReplayError: they are damaged; names shard and offset.
        """

    @abstractmethod
    def text(self, entry: Entry) -> tuple[Row, bytes]:
        """One record as JSON, with its row.

        Raises:
            ReplayError: it is damaged; names shard and offset.
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

    def sample(
        self,
        n: int,
        seed: int,
        *,
        replacement: bool = False,
        balance: str | Sequence[str] = (),
        weight: str | npt.ArrayLike | None = None,
    ) -> list[Trajectory]:
        """`n` records drawn at random; the same ones for the same set of records and seed.

        The draw goes by the records' content ids, so neither the number of writers nor their timing
        changes it. What cannot be read (damaged, or of another schema) is logged and replaced by
        the next in the draw.

        Args:
            n: how many.
            seed: of the draw.
            replacement: a record may come several times.
            balance: column or columns whose values come equally often, as far as there are enough
                records: ``"instance_id"`` for tasks, ``"resolved"`` for successes and failures.
            weight: a column of numbers, or one number for each record in order: how likely a
                record is drawn. One of weight 0 never is.

        Raises:
            ConfigError: there are fewer than `n` records and `replacement` is off, there is no such
                column, or a weight is no number or negative.
            ReplayError: too few of them can be read; names what cannot, by shard and offset.
        """
        index, positions = self.snapshot()
        ordered = _by_id(index, positions)
        groups = strata(index, ordered, balance)
        weights = record_weights(index, positions, ordered, weight)
        drawable = len(ordered) if weights is None else int(np.count_nonzero(weights))
        if n > drawable and not (replacement and drawable):
            raise ConfigError(f"Cannot sample {n} of {drawable} records without replacement.")
        draw = drawing(
            np.random.default_rng(seed), len(ordered), replacement, groups=groups, weights=weights
        )
        sampled: list[Trajectory] = []
        lost: dict[int, Entry] = {}
        while len(sampled) < n:
            drawn = draw(n - len(sampled), list(lost)).tolist()
            if not drawn:
                raise _too_few(n, drawable, list(lost.values()))
            entries = [index.entry(int(ordered[k])) for k in drawn]
            for k, entry, found in zip(drawn, entries, self._read_many(entries), strict=True):
                if found is None:
                    lost[k] = entry
                else:
                    sampled.append(found)
        return sampled

    def shuffled(self, seed: int) -> View:
        """These records in the order in which `sample` draws them from `seed` by default."""
        index, positions = self.snapshot()
        ordered = _by_id(index, positions)
        rng = np.random.default_rng(seed)
        return View(self, index, ordered[without_replacement(rng, len(ordered))])

    def _read_many(self, entries: Sequence[Entry]) -> list[Trajectory | None]:
        """One by one in order, None for what cannot be read."""
        found = []
        with _young_collections() as collect:
            for number, text in enumerate(self._texts(entries)):
                found.append(self._decoded(entries[number], text))
                if number % _COLLECT == _COLLECT - 1:
                    collect()
        return found

    def _texts(self, entries: Sequence[Entry]) -> Iterator[tuple[Row, bytes] | None]:
        """Records before they are decoded; None where something is wrong with one.

        From a disk one at a time, because threads would spend more on taking turns than they save,
        and a text is decoded fastest straight after it was decompressed. From a store many at
        once, all before one is decoded: decoding lets no other thread run.
        """
        if self.readers == 1:
            yield from map(self._text, entries)
            return
        with ThreadPoolExecutor(self.readers) as pool:
            for start in range(0, len(entries), _BATCH):
                yield from list(pool.map(self._text, entries[start : start + _BATCH]))

    def _text(self, entry: Entry) -> tuple[Row, bytes] | None:
        try:
            return self.text(entry)
        except ReplayError:
            return None

    def _decoded(self, entry: Entry, text: tuple[Row, bytes] | None) -> Trajectory | None:
        try:
            if text is not None:
                return decode(*text)
        except ReplayError:
            pass
        return self._try(entry)  # which says what is wrong, and where

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

    def unique(self, *columns: str) -> View:
        """The first record of each combination of the columns' values; by default of each id.

        Two records have the same id when all but their times is the same.

        Raises:
            ConfigError: there is no such column.
        """
        index, positions = self.snapshot()
        if not len(positions):
            return View(self, index, positions)
        codes = group_codes([index.codes(name)[positions] for name in columns or ("id",)])
        firsts = np.sort(np.unique(codes, return_index=True)[1])
        return View(self, index, positions[firsts])

    def split(
        self,
        parts: Mapping[str, float],
        *,
        seed: int = 0,
        by: Callable[[str], str] | None = None,
    ) -> dict[str, View]:
        """Disjoint views of whole tasks: no task is in two of them.

        Which part a task goes to depends on its name and the seed alone, so it stays there however
        the buffer grows, and two buffers split with the same seed don't leak into each other
        either. The shares are therefore met on average, not exactly.

        Args:
            parts: name → share, for example ``{"train": 0.9, "test": 0.1}``, scaled to sum 1.
            seed: of the assignment.
            by: instance id → what must stay together (a repository, say); the id itself by default.

        Raises:
            ConfigError: there are no parts, a share is not above 0, or a part got nothing.
        """
        if not parts or any(not share > 0 for share in parts.values()):
            raise ConfigError(f"A split needs parts with shares above 0, not {dict(parts)}.")
        index, positions = self.snapshot()
        codes = index.table["instance_id"][positions]
        bounds = np.cumsum(list(parts.values())) / sum(parts.values())
        where = np.zeros(len(index.texts), np.intp)
        for code in np.unique(codes).tolist():
            name = index.texts[code]
            place = _fraction(f"{seed}:{by(name) if by else name}")
            where[code] = min(int(np.searchsorted(bounds, place, side="right")), len(parts) - 1)
        chosen = where[codes]
        found = {name: View(self, index, positions[chosen == k]) for k, name in enumerate(parts)}
        empty = [name for name, view in found.items() if not len(view)]
        if empty:
            raise ConfigError(
                f"No task of {len(np.unique(codes))} fell into {', '.join(empty)}: "
                "give it a larger share, another seed, or more tasks."
            )
        return found

    def has(self, identity: str) -> bool:
        """Whether a record of that trajectory id is here."""
        index, positions = self.snapshot()
        return bool((index.table["id"][positions] == identity.encode()).any())

    def entries(self) -> Iterator[Entry]:
        """The records' index rows and where they lie, in order; bodies are not read."""
        index, positions = self.snapshot()
        for position in positions:
            yield index.entry(int(position))

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
            schemas=dict(sorted(Counter(table["schema_version"].tolist()).items())),
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
        self.readers = source.readers
        self._index = index
        self._positions = positions

    def snapshot(self) -> tuple[Index, Positions]:
        """The index and the positions of these records in it; neither changes later."""
        return self._index, self._positions

    def read(self, entry: Entry) -> Trajectory:
        """One record (see `Records.read`)."""
        return self._source.read(entry)

    def raw(self, entry: Entry) -> bytes:
        """One record's bytes (see `Records.raw`)."""
        return self._source.raw(entry)

    def text(self, entry: Entry) -> tuple[Row, bytes]:
        """One record as JSON (see `Records.text`)."""
        return self._source.text(entry)

    def __repr__(self) -> str:
        return f"View({len(self)} records of {self._source!r})"


def _by_id(index: Index, positions: Positions) -> Positions:
    order = index.by_id()
    return order if len(positions) == len(order) else order[np.isin(order, positions)]


def _too_few(n: int, drawable: int, lost: Sequence[Entry]) -> ReplayError:
    places = [f"{entry.shard} at byte {entry.offset}" for entry in lost[:3]]
    more = [f"{len(lost) - 3} more"] if len(lost) > 3 else []
    return ReplayError(
        f"Cannot sample {n} of {drawable} records: {len(lost)} cannot be read "
        f"({', '.join(places + more)}). The log says why; ask for fewer or repair the buffer."
    )


def _fraction(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


@contextmanager
def _young_collections() -> Iterator[Callable[[], object]]:
    """Cyclic garbage collection waits, but for what it gives to be called: a young collection.

    Records hold long tuples of numbers, which a collection looks through once and then leaves
    alone. While they are in the processor's cache that is cheap; left to the first collection
    after the sample it takes as long as decoding did. What is older isn't looked at.
    """
    if not gc.isenabled():
        yield lambda: None
        return
    gc.disable()
    try:
        yield lambda: gc.collect(0)
    finally:
        gc.enable()
