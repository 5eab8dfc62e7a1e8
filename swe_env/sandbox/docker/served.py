"""`Files` of a container: through a small server inside, or the engine's archives without one."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from swe_env.errors import ToolError
from swe_env.sandbox import beneath, files
from swe_env.sandbox.base import Entry
from swe_env.sandbox.docker import fileserver
from swe_env.sandbox.docker.archives import Archives
from swe_env.sandbox.docker.engine import Engine
from swe_env.sandbox.docker.stream import OUTPUT

_HEADER = struct.Struct(">II")
_SECONDS = 120.0
_MOST = 1 << 31
_PYTHONS = (
    "/usr/bin/python3", "/usr/local/bin/python3", "/opt/miniconda3/bin/python3", "python3",
)  # fmt: skip
# The modules run from these sources, without swe_env/__init__.py and what it imports.
_BOOT = """
import sys, types, collections, json
sources, workdir = json.loads(sys.stdin.buffer.readline().decode())
for name in ("swe_env", "swe_env.sandbox", "swe_env.errors", "swe_env.sandbox.base"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["swe_env.errors"].ToolError = type("ToolError", (Exception,), {})
sys.modules["swe_env.sandbox.base"].Entry = collections.namedtuple("Entry", "name kind size")
for name, text in sources:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
sys.stdout.buffer.write(b"ready")
sys.stdout.buffer.flush()
module.main(workdir)
"""
_FIND = """
read -r __swe_line
for python in @PYTHONS@; do
  "$python" -I -S -c 'import sys; sys.exit(sys.version_info < (3, 8))' </dev/null 2>/dev/null ||
    continue
  exec "$python" -I -S -c "$1" 2>/dev/null
done
echo none
""".replace("@PYTHONS@", " ".join(_PYTHONS))


class Peeked(NamedTuple):
    """An entry itself, links not followed."""

    kind: str
    """As in `Entry`, empty when there is none."""
    mode: int = 0
    data: bytes = b""
    """A file's bytes, a link's target."""


class Backend(Protocol):
    """Answers requests about files."""

    def call(self, ask: dict[str, Any], data: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """(answer, bytes); `ToolError` where the request is refused."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class Unserved(Exception):
    """There is no server, or it has ended."""


class Server:
    """The connection to `fileserver` in one container."""

    def __init__(self, engine: Engine, container: str, workdir: str) -> None:
        """Start it.

        Raises:
            Unserved: the image has no Python that could run it.
        """
        argv = ["bash", "--noprofile", "--norc", "-p", "-c", _FIND, "sh", _BOOT]
        _, self._stream = engine.exec(container, argv)
        self._data = bytearray()
        boot = json.dumps([_sources(), workdir]).encode()
        said = self._take(5, b"\n" + boot + b"\n")
        if said != b"ready":
            self.close()
            raise Unserved

    def call(self, ask: dict[str, Any], data: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """See `Backend.call`."""
        text = json.dumps(ask).encode()
        request = _HEADER.pack(len(text), len(data)) + text + data
        length, size = _HEADER.unpack(self._take(_HEADER.size, request))
        if max(length, size) > _MOST:
            raise Unserved
        try:
            answer = json.loads(self._take(length))
        except ValueError as error:
            raise Unserved from error
        raw = self._take(size)
        if "refused" in answer:
            raise ToolError(str(answer["refused"]))
        return answer, raw

    def close(self) -> None:
        """See `Backend.close`."""
        self._stream.close()

    def _take(self, count: int, outgoing: bytes = b"") -> bytes:
        """The next bytes that come back, `outgoing` sent first."""
        if len(self._data) < count:

            def enough(kind: int, part: bytes) -> bool:
                if kind == OUTPUT:
                    self._data.extend(part)
                return len(self._data) >= count

            self._stream.queue(outgoing)
            how = self._stream.pump(enough, until=time.monotonic() + _SECONDS)
            if how != "done":
                self.close()
                raise Unserved
        taken = bytes(self._data[:count])
        del self._data[:count]
        return taken


def _sources() -> list[tuple[str, str]]:
    modules = (beneath, files, fileserver)
    return [(module.__name__, Path(str(module.__file__)).read_text("utf-8")) for module in modules]


class ContainerFiles:
    """`Files` of one container; the server inside is started on first use, and again if it died."""

    def __init__(self, engine: Engine, container: str, workdir: str) -> None:
        self._engine = engine
        self._container = container
        self._workdir = workdir
        self._lock = threading.Lock()
        self._backend: Backend | None = None
        self._closed = False

    def read(self, path: str, *, limit: int = 16 << 20) -> bytes:
        """See `Files.read`."""
        return self._call({"op": "read", "path": path, "limit": limit})[1]

    def write(self, path: str, data: bytes) -> None:
        """See `Files.write`."""
        self._call({"op": "write", "path": path}, data)

    def remove(self, path: str) -> None:
        """See `Files.remove`; a symbolic link is removed itself, not what it leads to."""
        self._call({"op": "remove", "path": path})

    def stat(self, path: str) -> Entry | None:
        """See `Files.stat`."""
        found = self._call({"op": "stat", "path": path})[0]["entry"]
        return _entry(found) if found else None

    def list(self, path: str = "") -> list[Entry]:
        """See `Files.list`."""
        return [_entry(row) for row in self._call({"op": "list", "path": path})[0]["entries"]]

    def walk(self, path: str = "") -> Iterator[tuple[str, Entry]]:
        """See `Files.walk`; symbolic links are listed, not followed."""
        rows = self._call({"op": "walk", "path": path})[0]["entries"]
        return iter([(str(row[0]), _entry(row[1:])) for row in rows])

    def peek(self, path: str) -> Peeked:
        """The entry itself at a plain relative path."""
        answer, data = self._call({"op": "peek", "path": path})
        return Peeked(str(answer["kind"]), int(answer.get("mode", 0)) & 0o777, data)

    def move_to(self, container: str) -> None:
        """Go on in another container."""
        with self._lock:
            self._drop()
            self._container = container

    def close(self) -> None:
        """End the server; safe to call twice."""
        with self._lock:
            self._drop()
            self._closed = True

    def _drop(self) -> None:
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def _call(self, ask: dict[str, Any], data: bytes = b"") -> tuple[dict[str, Any], bytes]:
        with self._lock:
            if self._closed:
                raise ToolError("The sandbox is closed.")
            for _ in range(2):
                try:
                    if self._backend is None:
                        self._backend = Server(self._engine, self._container, self._workdir)
                    return self._backend.call(ask, data)
                except Unserved:
                    self._drop()
            self._backend = Archives(self._engine, self._container, self._workdir)
            return self._backend.call(ask, data)


def _entry(row: Sequence[Any]) -> Entry:
    return Entry(str(row[0]), str(row[1]), int(row[2]))
