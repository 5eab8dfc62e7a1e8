"""What became of the bugs that were tried, kept on disk: a stopped generation goes on."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
from collections.abc import Callable

import msgspec
import zstandard

from swe_env.cache import cache_dir, digest
from swe_env.tasks.mutate import Candidate
from swe_env.tasks.synth.baseline import Baseline
from swe_env.tasks.synth.package import Package
from swe_env.tasks.synth.settings import Settings
from swe_env.tasks.synth.trial import Bug

_LAYOUT = 1
"""Raise when a trial may come out in another way than before."""
_log = logging.getLogger(__name__)


class Tried:
    """Results of trials of one package, tests and settings, from any thread and process.

    A memory that cannot be read or written to is only told of: the bugs are then tried again.
    """

    def __init__(self, package: Package, baseline: Baseline, settings: Settings) -> None:
        """Open the package's memory, or begin one."""
        key = [
            *(_LAYOUT, package.commit, package.environment.name, package.recipe.pythonpath),
            *(settings.pytest_options, settings.tests, sorted(baseline.stable)),
        ]
        self._file = cache_dir("tried") / f"{package.label}-{digest(key)}.sqlite"
        self._lock = threading.Lock()
        self._store: sqlite3.Connection | None = None
        self._do(self._open)

    def result(self, bugs: tuple[Candidate, ...], attempt: Callable[[], Bug | str]) -> Bug | str:
        """What `attempt` gave for these bugs before, or gives now."""
        key = hashlib.sha256(msgspec.json.encode(bugs)).digest()
        known = self._do(lambda: self._read(key))
        if known is not None:
            return msgspec.msgpack.decode(zstandard.decompress(known), type=Bug | str)
        found = attempt()
        packed = zstandard.compress(msgspec.msgpack.encode(found))
        self._do(lambda: self._write(key, packed))
        return found

    def _open(self) -> None:
        self._store = sqlite3.connect(
            self._file, timeout=60, isolation_level=None, check_same_thread=False
        )
        self._store.execute("CREATE TABLE IF NOT EXISTS tried (bugs BLOB PRIMARY KEY, result BLOB)")

    def _read(self, key: bytes) -> bytes | None:
        if self._store is None:
            return None
        row = self._store.execute("SELECT result FROM tried WHERE bugs = ?", (key,)).fetchone()
        return bytes(row[0]) if row else None

    def _write(self, key: bytes, result: bytes) -> None:
        if self._store is not None:
            self._store.execute("INSERT OR IGNORE INTO tried VALUES (?, ?)", (key, result))

    def _do(self, work: Callable[[], bytes | None]) -> bytes | None:
        with self._lock:
            try:
                return work()
            except sqlite3.Error as error:
                _log.warning(
                    "%s cannot be used (%s): bugs tried before are tried again; remove the file if "
                    "it is damaged.",
                    *(self._file, error),
                )
                self._close()
                return None

    def close(self) -> None:
        """Close the file; what comes after is tried and not kept."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None
