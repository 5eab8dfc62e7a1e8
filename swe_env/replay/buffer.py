"""`ReplayBuffer`: a folder of trajectories that many processes append to and read at once."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType

import numpy as np

from swe_env.errors import ConfigError, ReplayError
from swe_env.replay import index as indexing
from swe_env.replay.frames import (
    UNFINISHED,
    Damage,
    Located,
    Read,
    Row,
    check,
    damaged,
    pack,
    replaced,
    scan,
    unpack,
    unpack_text,
)
from swe_env.replay.index import Entry, Index, Positions, Saved
from swe_env.replay.storage import Appender, open_storage
from swe_env.replay.trajectory import Trajectory
from swe_env.replay.view import Records

log = logging.getLogger(__name__)

SUFFIX = ".jsonl.zst"
_INDEX = "index"
_SAVE_AFTER = 256
"""Records found by scanning after which the index is worth saving."""
_SYNC_AFTER = 256
_PUT_BYTES = 16 << 20
"""`extend` syncs, or puts a file, after so many records or bytes."""


class ReplayBuffer(Records):
    """Append-only store of trajectories in a folder.

    Every open buffer that appends has a shard file of its own, so writers (threads, processes,
    machines on a shared folder) never interleave. `append` returns when the record survives the
    death of this process; a killed writer loses at most the record it was writing. The index file
    only saves time: it is rebuilt from the shards whenever it is lost, stale or damaged.

    Records keep (shard, offset) order, that is the order of appending within one writer. What
    others append is seen after `refresh`. A view made by `filter` stays as it was.

    Args:
        path: the folder (made at the first append), or the URL of one on an fsspec file system.
        durable: also wait for the disk, so that a record survives a power cut.
        create: False refuses a path where there is no buffer yet.

    Raises:
        ConfigError: `create` is off and there is no buffer, or the URL's file system is unknown.

    Example:
        >>> buffer = ReplayBuffer("runs/buffer")
        >>> good = buffer.filter(resolved=True, finished=True)
        >>> batch = good.sample(16, seed=0)
    """

    def __init__(
        self, path: str | os.PathLike[str], *, durable: bool = False, create: bool = True
    ) -> None:
        self.storage = open_storage(path)
        """Where the bytes lie."""
        # A store answers late, so many are asked at once; a disk's work is short.
        self.readers = 1 if self.storage.appendable else 16
        if not create and not (self.storage.sizes(SUFFIX) or self.storage.load(_INDEX)):
            raise ConfigError(f"There is no replay buffer at {self.path}: check the path.")
        self._durable = durable
        self._lock = threading.RLock()
        self._index = Index.empty()
        self._pending: list[Entry] = []
        self._scanned: dict[str, int] = {}
        self._replaced: set[str] = set()
        self._damages: tuple[Damage, ...] = ()
        self._shard = ""
        self._appender: Appender | None = None
        self._writer_pid = 0
        self._unsaved = 0
        self._load()
        self.refresh()

    @property
    def path(self) -> str:
        """The folder, absolute, or its URL."""
        return self.storage.url

    @property
    def damages(self) -> tuple[Damage, ...]:
        """What was skipped while looking for records; `verify` looks into them too."""
        return self._damages

    # -- reading ---------------------------------------------------------------------------------

    def __len__(self) -> int:
        with self._lock:
            return len(self._index) + len(self._pending)

    def snapshot(self) -> tuple[Index, Positions]:
        """The index as it is now and the positions of all its records."""
        with self._lock:
            if self._pending:
                self._index = self._index.extended(self._pending)
                self._pending = []
            return self._index, np.arange(len(self._index))

    def read(self, entry: Entry) -> Trajectory:
        """One record.

        Raises:
            ReplayError: it is damaged or of an unknown schema; names shard and offset.
        """
        with self._named(entry):
            return unpack(self._bytes(entry))

    def raw(self, entry: Entry) -> bytes:
        """One record's bytes as they were appended, whatever its schema.

        Raises:
            ReplayError: they are damaged; names shard and offset.
        """
        with self._named(entry):
            data = self._bytes(entry)
            check(data)
            return data

    def text(self, entry: Entry) -> tuple[Row, bytes]:
        """One record as JSON, with its row.

        Raises:
            ReplayError: it is damaged; names shard and offset.
        """
        with self._named(entry):
            return unpack_text(self._bytes(entry))

    @contextmanager
    def _named(self, entry: Entry) -> Iterator[None]:
        try:
            yield
        except (ReplayError, OSError) as error:
            raise ReplayError(
                f"Record {entry.row.id} in {entry.shard} at byte {entry.offset} of {self.path} "
                f"cannot be read: {error}."
            ) from error

    def _bytes(self, entry: Entry) -> bytes:
        try:
            return self.storage.read(entry.shard, entry.offset, entry.length)
        except FileNotFoundError:
            # The shard was compacted after the view was made: the record lies elsewhere now.
            self.refresh()
            moved = self.snapshot()[0].find(entry.row.id)
            if moved is None:
                raise
            return self.storage.read(moved.shard, moved.offset, moved.length)

    def refresh(self) -> int:
        """Find what others have appended; the number of records that are new."""
        with self._lock:
            sizes = self._current()
            gone = [s for s, end in self._scanned.items() if sizes.get(s, -1) < end]
            if gone:
                self._forget(gone)
            before = len(self._index) + len(self._pending)
            for shard, size in sizes.items():
                if self._scanned.get(shard, 0) < size:
                    self._scan(shard, size)
            found = len(self._index) + len(self._pending) - before
            self._unsaved += found
            if self._unsaved >= _SAVE_AFTER:
                self._save()
            return found

    def finish_replacing(self) -> list[str]:
        """Delete the shards that another one has taken the place of; their names."""
        with self._lock:
            self._current()
            left = sorted(self._replaced)
            for shard in left:
                self.storage.remove(shard)
            return left

    def shards(self) -> dict[str, int]:
        """Name → bytes of the shards that count now, in order."""
        with self._lock:
            return self._current()

    def verify(self) -> list[Damage]:
        """Read every record of every shard; what is damaged, by shard and offset.

        A record of another schema version is not damaged: `stats` counts the versions. A shard
        that is compacted meanwhile is passed over: who compacted it looked at its records.
        """
        damages: list[Damage] = []
        for shard, size in self.shards().items():
            with suppress(FileNotFoundError):
                damages += list(damaged(shard, self.reader(shard), size))
        return damages

    def reader(self, shard: str) -> Read:
        """``read(offset, length)`` of one shard."""
        return lambda offset, length: self.storage.read(shard, offset, length)

    # -- writing ---------------------------------------------------------------------------------

    def append(self, trajectory: Trajectory) -> str:
        """Store one trajectory; its id. When this returns a killed process cannot lose it.

        Raises:
            ReplayError: it could not be written (disk full, folder gone); nothing of it is kept.
        """
        row, data = pack(trajectory)
        with self._lock:
            self._write([(row, data)])
            self._sync()
        return row.id

    def extend(self, trajectories: Iterable[Trajectory]) -> list[str]:
        """Append several; their ids.

        Records are written one by one as they come; with `durable` the disk is waited for once
        for many. On an object store up to 256 records or 16 MB make one file, which is put when it
        is full and at the end.
        """
        return self.extend_packed(pack(trajectory) for trajectory in trajectories)

    def extend_packed(self, records: Iterable[tuple[Row, bytes]]) -> list[str]:
        """`extend` by records that are packed already (`swe_env.replay.frames.pack`)."""
        ids: list[str] = []
        batch: list[tuple[Row, bytes]] = []
        size = 0
        try:
            for row, data in records:
                if self.storage.appendable:
                    self._write([(row, data)])
                batch.append((row, data))
                size += len(data)
                if len(batch) >= _SYNC_AFTER or size >= _PUT_BYTES:
                    ids += self._finish(batch)
                    batch, size = [], 0
        finally:  # also when the iterable raises: what it gave before is kept
            if batch:
                ids += self._finish(batch)
        return ids

    def forget(self) -> None:
        """Take nothing the index says for granted: read every shard's headers again."""
        with self._lock:
            self._index, self._pending = Index.empty(), []
            self._scanned, self._replaced, self._damages = {}, set(), ()
            self._unsaved = _SAVE_AFTER
            self.refresh()

    def close(self) -> None:
        """Save the index, close the shard; the buffer stays readable, `append` opens another."""
        with self._lock:
            if self._appender is not None and self._writer_pid == os.getpid():
                self._appender.close()
            self._appender = None
            if self._unsaved:
                self._save()
            self.storage.close()

    def __enter__(self) -> ReplayBuffer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ReplayBuffer({self.path!r}, {len(self)} records)"

    # -- inside ----------------------------------------------------------------------------------

    def _write(self, records: Sequence[tuple[Row, bytes]]) -> None:
        with self._lock:
            if self._appender is None or self._writer_pid != os.getpid():
                self._open_shard()
            assert self._appender is not None
            try:
                offset = self._appender.append(b"".join(data for _, data in records))
            except OSError as error:
                self._appender = None  # its end is unknown: the next record gets a new shard
                raise ReplayError(
                    f"The shard {self._shard} of {self.path} was lost: {error.strerror}; the next "
                    "append begins another."
                ) from error
            for row, data in records:
                self._pending.append(Entry(row, self._shard, offset, len(data)))
                offset += len(data)
            self._scanned[self._shard] = offset
            self._unsaved += len(records)
            if not self.storage.appendable:
                self._appender = None

    def _finish(self, batch: Sequence[tuple[Row, bytes]]) -> list[str]:
        with self._lock:
            if self.storage.appendable:
                self._sync()
            else:
                self._write(batch)
        return [row.id for row, _ in batch]

    def _sync(self) -> None:
        if self._durable and self._appender is not None:
            try:
                self._appender.sync()
            except OSError as error:
                self._appender = None
                raise ReplayError(
                    f"The disk did not confirm records appended to {self._shard} of {self.path}: "
                    f"{error.strerror}; they may not survive a power cut."
                ) from error

    def _open_shard(self) -> None:
        """A new shard for this process: after a fork parent and child must not share one."""
        self._shard = new_shard()
        self._appender = self.storage.create(self._shard)
        self._writer_pid = os.getpid()

    def _current(self) -> dict[str, int]:
        """Sizes of the shards, without those whose place another one has taken."""
        sizes = self.storage.sizes(SUFFIX)
        for shard in sizes.keys() - self._scanned.keys():
            with suppress(FileNotFoundError):  # deleted since it was listed
                self._replaced.update(replaced(self.reader(shard)))
        self._replaced &= sizes.keys()
        return {shard: size for shard, size in sizes.items() if shard not in self._replaced}

    def _scan(self, shard: str, size: int) -> None:
        end = self._scanned.get(shard, 0)
        with suppress(FileNotFoundError):  # compacted since it was listed: the next refresh sees it
            self._take(shard, end, size)

    def _take(self, shard: str, end: int, size: int) -> None:
        for found in scan(shard, self.reader(shard), end, size):
            if isinstance(found, Located):
                self._pending.append(Entry(found.row, shard, found.offset, found.length))
                end = found.offset + found.length
            elif found.reason != UNFINISHED and found not in self._damages:
                # Damage at a shard's end is met again by every scan: it is told once.
                log.warning("Skipped in %s: %s.", self.path, found)
                self._damages += (found,)
        self._scanned[shard] = end

    def _forget(self, shards: list[str]) -> None:
        """Shards that shrank or vanished: drop their rows and read them again from the start."""
        shrunk = [s for s in shards if s in self.storage.sizes(SUFFIX) and s not in self._replaced]
        if shrunk:
            log.warning("Shards of %s changed behind the index: %s.", self.path, ", ".join(shrunk))
        self._pending = [entry for entry in self._pending if entry.shard not in shards]
        self._index = self._index.without(shards)
        self._damages = tuple(d for d in self._damages if d.shard not in shards)
        for shard in shards:
            self._scanned.pop(shard)

    def _load(self) -> None:
        data = self.storage.load(_INDEX)
        saved = indexing.load(data) if data is not None else None
        if saved is not None:
            self._index, self._scanned = saved.index, dict(saved.scanned)
            self._damages, self._replaced = saved.damages, set(saved.replaced)
        elif data is not None:
            log.warning("The index of %s is damaged or old: it is rebuilt.", self.path)

    def _save(self) -> None:
        index, _ = self.snapshot()
        saved = Saved(index, self._scanned, self._damages, frozenset(self._replaced))
        try:
            self.storage.replace(_INDEX, indexing.dump(saved))
        except Exception as error:  # it is only a cache, and every file system has its own errors
            log.warning("The index of %s could not be saved: %s.", self.path, error)
        self._unsaved = 0


def new_shard() -> str:
    """A name no other shard has; names sort by the time they were made."""
    return f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}{SUFFIX}"
