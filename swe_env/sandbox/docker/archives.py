"""Files of a container through the engine's archives: slow, but no Python is needed inside."""

from __future__ import annotations

import io
import posixpath
import tarfile
import time
from typing import Any

from swe_env.errors import SandboxError, ToolError
from swe_env.sandbox.docker.engine import Engine

_MOST_LINKS = 40
_REMOVE_SECONDS = 30.0
_KINDS = {tarfile.REGTYPE: "file", tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "link"}


class Archives:
    """Answers the requests of `fileserver` by reading and writing tar archives."""

    def __init__(self, engine: Engine, container: str, workdir: str) -> None:
        self._engine = engine
        self._container = container
        self._workdir = workdir

    def close(self) -> None:
        """Nothing is held."""

    def call(self, ask: dict[str, Any], data: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """See `swe_env.sandbox.docker.served.Backend.call`."""
        op, path = ask["op"], str(ask["path"])
        if op == "peek":
            return self._peek(path)
        if op == "stat":
            try:
                found = self._look(self._resolve(path))
            except _NoFile:
                return {"entry": None}, b""
            return {"entry": found and _row(found, path)}, b""
        try:
            return getattr(self, f"_{op}")(path, ask, data)  # type: ignore[no-any-return]
        except _NoFile as error:
            raise ToolError(f"There is no {path or '.'}.") from error

    def _read(self, path: str, ask: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        place = self._resolve(path)
        info = self._file(place, path)
        if info.size > ask["limit"]:
            raise ToolError(
                f"{path} is too large: {info.size:,} bytes, the limit is {ask['limit']:,}."
            )
        return {}, self._get(place)[1]

    def _write(self, path: str, _: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        place = self._resolve(path, missing=True)
        if not place:
            raise ToolError(f"{path or '.'} is a folder, not a file.")
        try:
            mode = self._file(place, path).mode
        except _NoFile:
            mode = 0o644
        made = []
        for index, _part in enumerate(place.split("/")[:-1], start=1):
            folder = "/".join(place.split("/")[:index])
            if self._look(folder) is None:
                made.append(_member(folder, tarfile.DIRTYPE, 0o755))
        self._put([*((info, b"") for info in made), (_member(place, tarfile.REGTYPE, mode), data)])
        return {}, b""

    def _remove(self, path: str, _: dict[str, Any], __: bytes) -> tuple[dict[str, Any], bytes]:
        folder, _slash, name = path.rstrip("/").rpartition("/")
        place = posixpath.join(self._resolve(folder), name)
        info = self._look(place)
        if info is None:
            raise _NoFile
        if info.isdir() or name in ("", ".", ".."):
            raise ToolError(f"{path or '.'} is a folder, not a file.")
        # Archives cannot say that a file is gone, so this one time a process is started.
        _exec, stream = self._engine.exec(self._container, ["rm", "-f", "--", self._at(place)])
        try:
            stream.pump(lambda *_: False, until=time.monotonic() + _REMOVE_SECONDS)
        finally:
            stream.close()
        return {}, b""

    def _list(self, path: str, _: dict[str, Any], __: bytes) -> tuple[dict[str, Any], bytes]:
        members = self._members(path)
        rows = [_row(info, name) for name, info in members if "/" not in name]
        return {"entries": sorted(rows)}, b""

    def _walk(self, path: str, _: dict[str, Any], __: bytes) -> tuple[dict[str, Any], bytes]:
        members = self._members(path)
        prefix = "/".join(part for part in self._relative(path).split("/") if part not in ("", "."))
        rows = [
            [posixpath.join(prefix, name), *_row(info, name)]
            for name, info in members
            if ".git" not in name.split("/")
        ]
        return {"entries": sorted(rows, key=lambda row: row[0].split("/"))}, b""

    def _peek(self, path: str) -> tuple[dict[str, Any], bytes]:
        try:
            info, data = self._get(path)
        except _NoFile:
            return {"kind": ""}, b""
        kind = _KINDS.get(info.type, "other")
        if kind == "link":
            return {"kind": kind}, info.linkname.encode("utf-8", "surrogateescape")
        return {"kind": kind, "mode": info.mode & 0o777}, data

    def _members(self, path: str) -> list[tuple[str, tarfile.TarInfo]]:
        """What is below a folder, by names relative to it."""
        place = self._resolve(path)
        info = self._look(place)
        if info is None:
            raise _NoFile
        if not info.isdir():
            raise ToolError(f"{path} is not a folder, or goes through something that is none.")
        found = []
        with tarfile.open(fileobj=self._archive(place)) as tar:
            for member in tar:
                _, slash, name = member.name.partition("/")
                if slash and name:
                    found.append((name, member))
        return found

    def _relative(self, path: str) -> str:
        if "\0" in path:
            raise ToolError("A path cannot hold a NUL character.")
        if path.startswith("/"):
            clean = posixpath.normpath(path)
            if clean != self._workdir and not clean.startswith(self._workdir + "/"):
                raise ToolError(
                    f"{path} is outside the workspace: paths are relative, or start with "
                    f"{self._workdir}/."
                )
            return clean[len(self._workdir) + 1 :]
        return path.rstrip("/")

    def _resolve(self, path: str, *, missing: bool = False) -> str:
        """The path with its links followed, which must not lead outside."""
        todo = [part for part in self._relative(path).split("/") if part not in ("", ".")][::-1]
        done: list[str] = []
        links = 0
        while todo:
            part = todo.pop()
            if part == "..":
                if not done:
                    raise ToolError(f"{path} leads outside the workspace.")
                done.pop()
                continue
            info = self._look("/".join([*done, part]))
            if info is None:
                if not missing or ".." in todo:
                    raise _NoFile
                return "/".join([*done, part, *todo[::-1]])
            if info.issym():
                links += 1
                if links > _MOST_LINKS:
                    raise ToolError(f"{path} goes through too many symbolic links.")
                target = info.linkname
                if target.startswith("/"):
                    if target != self._workdir and not target.startswith(self._workdir + "/"):
                        raise ToolError(f"{path} leads outside the workspace.")
                    target, done = target[len(self._workdir) :], []
                todo += [piece for piece in target.split("/") if piece not in ("", ".")][::-1]
            elif todo and not info.isdir():
                raise ToolError(f"{path} goes through something that is not a folder.")
            else:
                done.append(part)
        return "/".join(done)

    def _file(self, place: str, path: str) -> tarfile.TarInfo:
        info = self._look(place)
        if info is None:
            raise _NoFile
        if info.isdir():
            raise ToolError(f"{path or '.'} is a folder, not a file.")
        if not info.isreg():
            raise ToolError(f"{path} is not a regular file.")
        return info

    def _at(self, place: str) -> str:
        return posixpath.join(self._workdir, place) if place else self._workdir

    def _look(self, place: str) -> tarfile.TarInfo | None:
        """The entry itself, links not followed, None where there is none; its bytes stay away."""
        stat = self._engine.path_stat(self._container, self._at(place))
        if stat is None:
            return None
        # The engine's stat has Go's mode bits.
        info = tarfile.TarInfo(place)
        mode, info.size = int(stat["mode"]), int(stat["size"])
        info.mode = mode & 0o777
        info.linkname = str(stat.get("linkTarget") or "")
        if mode & 1 << 31:
            info.type = tarfile.DIRTYPE
        elif mode & 1 << 27:
            info.type = tarfile.SYMTYPE
            info.linkname = self._get(place)[0].linkname
        elif mode & (1 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 1 << 19):
            info.type = tarfile.FIFOTYPE
        return info

    def _get(self, place: str) -> tuple[tarfile.TarInfo, bytes]:
        with tarfile.open(fileobj=self._archive(place)) as tar:
            member = tar.next()
            if member is None:
                raise _NoFile
            file = tar.extractfile(member) if member.isreg() else None
            return member, file.read() if file else b""

    def _archive(self, place: str) -> io.BytesIO:
        try:
            with self._engine.doing("read a file of the sandbox"):
                stream, _ = self._engine.api.get_archive(self._container, self._at(place))
                return io.BytesIO(b"".join(stream))
        except SandboxError as error:
            if self._engine.path_stat(self._container, self._at(place)) is None:
                raise _NoFile from error
            raise

    def _put(self, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for info, data in members:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        with self._engine.doing("write a file of the sandbox"):
            self._engine.api.put_archive(self._container, self._workdir, file.getvalue())


class _NoFile(Exception):
    """There is no such file."""


def _member(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = kind, mode
    return info


def _row(info: tarfile.TarInfo, name: str) -> list[Any]:
    size = len(info.linkname) if info.issym() else info.size
    return [posixpath.basename(name.rstrip("/")), _KINDS.get(info.type, "other"), size]
