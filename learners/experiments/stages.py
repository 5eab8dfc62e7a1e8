"""Long experiments in stages: each is shown, timed, written down, and skipped when done before."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from swe_env.disk import write_atomically
from swe_env.errors import ConfigError


class Stages:
    """Runs named stages in a folder; a second run over the same folder continues the first.

    A stage is a function that returns plain JSON data. Its result and seconds are kept in
    ``<out>/stages/<name>.json``, written only when the stage is complete.
    """

    def __init__(self, out: Path, config: dict[str, Any], *, total: int) -> None:
        """Open or continue the folder.

        Raises:
            ConfigError: the folder holds a run with other settings; names them.
        """
        self.out = out
        self._total = total
        self._count = 0
        self._console = Console(stderr=True, highlight=False)
        self.records: dict[str, dict[str, Any]] = {}
        (out / "stages").mkdir(parents=True, exist_ok=True)
        known = out / "config.json"
        # Through JSON, so that tuples and lists compare equal.
        config = msgspec.json.decode(msgspec.json.encode(config))
        if known.exists():
            before = msgspec.json.decode(known.read_bytes())
            changed = [key for key in {*before, *config} if before.get(key) != config.get(key)]
            if changed:
                raise ConfigError(
                    f"{out} holds a run with other settings ({', '.join(sorted(changed))}): "
                    "choose another --out, or remove that folder."
                )
        else:
            write_atomically(known, msgspec.json.format(msgspec.json.encode(config)))

    def run(self, name: str, title: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The stage's result: from its record when it was completed before, else by `work()`."""
        self._count += 1
        path = self.out / "stages" / f"{name}.json"
        head = f"[{self._count}/{self._total}] {title}"
        if path.exists():
            record: dict[str, Any] = msgspec.json.decode(path.read_bytes())
            self._console.print(f"{head} [dim]— done before, in {record['seconds']:.0f} s[/]")
        else:
            self._console.print(head)
            started = time.perf_counter()
            result = work()
            _give_back()
            record = {"title": title, "seconds": time.perf_counter() - started, "result": result}
            write_atomically(path, msgspec.json.encode(record))
            self._console.print(f"      [dim]{record['seconds']:.0f} s[/]")
        self.records[name] = record
        found: dict[str, Any] = record["result"]
        return found


def _give_back() -> None:
    """Return the memory of models that are gone: glibc keeps what other threads freed."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
