"""Containers started ahead of need, for starts that do not wait for the engine."""

from __future__ import annotations

import atexit
import os
import threading
from functools import cache

import msgspec

from swe_env.errors import SandboxError
from swe_env.sandbox.docker.container import Container, Setup
from swe_env.sandbox.docker.engine import Engine


class Pool:
    """Keeps up to `size` unused containers of the setups that were started last."""

    def __init__(self, size: int) -> None:
        """With a size of 0 nothing is kept and no thread is started."""
        self.size = size
        self._lock = threading.Lock()
        self._ready: list[tuple[bytes, Container]] = []
        self._filler: threading.Thread | None = None
        self._process = os.getpid()

    def take(self, engine: Engine, setup: Setup) -> Container:
        """A fresh container, started before or now."""
        if not self.size:
            return Container(engine, setup)
        key = engine.host.encode() + msgspec.json.encode(setup, order="deterministic")
        with self._lock:
            if self._process != os.getpid():
                self._ready, self._filler, self._process = [], None, os.getpid()
            found = next((item for item in self._ready if item[0] == key), None)
            if found is not None:
                self._ready.remove(found)
        container = found[1] if found is not None else Container(engine, setup)
        with self._lock:
            if self._filler is None:
                self._filler = threading.Thread(
                    target=self._fill, args=(engine, setup, key), name="swe-env-pool", daemon=True
                )
                self._filler.start()
        return container

    def close(self) -> None:
        """End the containers that were never used."""
        filler = self._filler
        if filler is not None and self._process == os.getpid():
            filler.join()
        with self._lock:
            unused, self._ready = self._ready, []
        if self._process == os.getpid():
            for _, container in unused:
                container.close()

    def _fill(self, engine: Engine, setup: Setup, key: bytes) -> None:
        """Start containers of this setup until there are enough; the oldest others make room."""
        try:
            while True:
                with self._lock:
                    if sum(item[0] == key for item in self._ready) >= self.size:
                        return
                container = Container(engine, setup)
                with self._lock:
                    self._ready.append((key, container))
                    surplus = self._ready[: max(0, len(self._ready) - self.size)]
                    self._ready = self._ready[len(surplus) :]
                for _, old in surplus:
                    old.close()
        except SandboxError:
            return  # whoever needs one next is told
        finally:
            with self._lock:
                self._filler = None


@cache
def shared_pool(size: int) -> Pool:
    """The pool of this process with that size."""
    pool = Pool(size)
    atexit.register(pool.close)
    return pool
