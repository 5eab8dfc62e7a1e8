"""`ReplayBuffer`: a folder of trajectories that many processes append to and read at once."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Iterable
from types import TracebackType

import numpy as np

from swe_env.errors import ReplayError
from swe_env.replay import index as indexing
from swe_env.replay.frames import UNFINISHED, Damage, Located, Read, pack, scan, unpack
from swe_env.replay.index import Entry, Index, Positions, Saved
from swe_env.replay.storage import Appender, open_storage
from swe_env.replay.trajectory import Trajectory
from swe_env.replay.view import Records

log = logging.getLogger(__name__)

_SUFFIX = ".jsonl.zst"
_INDEX = "index"
_SAVE_AFTER = 256
"""Records found by scanning after which the index is worth saving."""


class ReplayBuffer(Records):
    """Append-only store of trajectories in a folder.

    Every open buffer that appends has a shard file of its own, so writers (threads, processes,
    machines on a shared folder) never interleave. `append` returns when the record survives the
    death of this process; a killed writer loses at most the record it was writing. The index file
    only saves time: it is rebuilt from the shards whenever it is lost, stale or damaged.

    Records keep (shard, offset) order, that is the order of appending within one writer. What
    others append is seen after `refresh`. A view made by `filter` stays as it was.

    Args:
        path: the folder (created if missing), or a ``file://`` URL.
        durable: also wait for the disk, so that a record survives a power cut.

    Example:
        >>> buffer = ReplayBuffer("runs/buffer")
        >>> good = buffer.filter(resolved=True, finished=True)
        >>> batch = good.sample(16, seed=0)
    """

    def __init__(self, path: str | os.PathLike[str], *, durable: bool = False) -> None:
        self._storage = open_storage(path)
        self._durable = durable
        self._lock = threading.RLock()
        self._index = Index.empty()
        self._pending: list[Entry] = []
        self._scanned: dict[str, int] = {}
        self._damages: tuple[Damage, ...] = ()
        self._shard = ""
        self._appender: Appender | None = None
        self._writer_pid = 0
        self._unsaved = 0
        self._load()
        self.refresh()

    @property
    def path(self) -> str:
        """The folder, absolute."""
        return self._storage.url

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
        try:
            return unpack(self._storage.read(entry.shard, entry.offset, entry.length))
        except (ReplayError, OSError) as error:
            raise ReplayError(
                f"Record {entry.row.id} in {entry.shard} at byte {entry.offset} of {self.path} "
                f"cannot be read: {error}."
            ) from error

    def refresh(self) -> int:
        """Find what others have appended; the number of records that are new."""
        with self._lock:
            sizes = self._storage.sizes(_SUFFIX)
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

    def verify(self) -> list[Damage]:
        """Read every record of every shard; what is damaged, by shard and offset."""
        damages = []
        for shard, size in self._storage.sizes(_SUFFIX).items():
            for found in scan(shard, self._reader(shard), 0, size):
                if isinstance(found, Damage):
                    damages.append(found)
                    continue
                try:
                    unpack(self._storage.read(shard, found.offset, found.length))
                except ReplayError as error:
                    damages.append(Damage(shard, found.offset, str(error)))
        return damages

    # -- writing ---------------------------------------------------------------------------------

    def append(self, trajectory: Trajectory) -> str:
        """Store one trajectory; its id. When this returns a killed process cannot lose it.

        Raises:
            ReplayError: it could not be written (disk full, folder gone); nothing of it is kept.
        """
        row, data = pack(trajectory)
        with self._lock:
            if self._appender is None or self._writer_pid != os.getpid():
                self._open_shard()
            assert self._appender is not None
            try:
                offset = self._appender.append(data, durable=self._durable)
            except OSError as error:
                self._appender = None  # its end is unknown: the next record gets a new shard
                raise ReplayError(f"The shard {self._shard} was lost: {error}.") from error
            self._pending.append(Entry(row, self._shard, offset, len(data)))
            self._scanned[self._shard] = offset + len(data)
            self._unsaved += 1
        return row.id

    def extend(self, trajectories: Iterable[Trajectory]) -> list[str]:
        """Append several; their ids."""
        return [self.append(trajectory) for trajectory in trajectories]

    def close(self) -> None:
        """Save the index, close the shard; the buffer stays readable, `append` opens another."""
        with self._lock:
            if self._appender is not None and self._writer_pid == os.getpid():
                self._appender.close()
            self._appender = None
            if self._unsaved:
                self._save()
            self._storage.close()

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

    def _open_shard(self) -> None:
        """A new shard for this process: after a fork parent and child must not share one."""
        self._shard = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}{_SUFFIX}"
        self._appender = self._storage.create(self._shard)
        self._writer_pid = os.getpid()

    def _reader(self, shard: str) -> Read:
        return lambda offset, length: self._storage.read(shard, offset, length)

    def _scan(self, shard: str, size: int) -> None:
        end = self._scanned.get(shard, 0)
        for found in scan(shard, self._reader(shard), end, size):
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
        log.warning("Shards of %s changed behind the index: %s.", self.path, ", ".join(shards))
        self._pending = [entry for entry in self._pending if entry.shard not in shards]
        self._index = self._index.without(shards)
        self._damages = tuple(d for d in self._damages if d.shard not in shards)
        for shard in shards:
            self._scanned.pop(shard)

    def _load(self) -> None:
        data = self._storage.load(_INDEX)
        saved = indexing.load(data) if data is not None else None
        if saved is not None:
            self._index, self._scanned = saved.index, dict(saved.scanned)
            self._damages = saved.damages
        elif data is not None:
            log.warning("The index of %s is damaged or old: it is rebuilt.", self.path)

    def _save(self) -> None:
        index, _ = self.snapshot()
        try:
            self._storage.replace(_INDEX, indexing.dump(Saved(index, self._scanned, self._damages)))
        except OSError as error:
            log.warning("The index of %s could not be saved: %s.", self.path, error)
        self._unsaved = 0
