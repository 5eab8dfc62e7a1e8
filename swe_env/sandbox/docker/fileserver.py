"""Serves the workspace's files inside a container, by the image's own Python (3.8 or newer).

Sent there as source together with `files.py` and `beneath.py`, so that what may be opened is
decided by the same code as everywhere else. Requests and answers are a length, JSON, and raw bytes.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import stat
import struct
import sys
from typing import Any

from swe_env.errors import ToolError
from swe_env.sandbox.base import Entry
from swe_env.sandbox.beneath import OutsideError, open_beneath
from swe_env.sandbox.files import DirFiles

_HEADER = struct.Struct(">II")
_PR_SET_DUMPABLE = 4


class Server:
    """Answers one request after the other until its input ends."""

    def __init__(self, workdir: str) -> None:
        self.workdir = workdir
        self.files: DirFiles | None = None
        self.place = (0, 0)

    def current(self) -> DirFiles:
        """The workspace as it is now: a command may have put another folder in its place."""
        info = os.lstat(self.workdir)
        if not stat.S_ISDIR(info.st_mode):
            raise ToolError(f"The workspace {self.workdir} is no longer a folder.")
        if self.files is None or self.place != (info.st_dev, info.st_ino):
            root = os.open(self.workdir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            if self.files is not None:
                self.files.close()
            self.files = DirFiles(root, self.workdir)
            os.close(root)
            self.place = (info.st_dev, info.st_ino)
        return self.files

    def answer(self, ask: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        """(answer, raw bytes) to one request."""
        op, path = ask["op"], ask["path"]
        files = self.current()
        if op == "read":
            return {}, files.read(path, limit=ask["limit"])
        if op == "peek":
            return peek(files, path, self.workdir)
        if op == "stat":
            entry = files.stat(path)
            return {"entry": entry and _row(entry)}, b""
        if op == "list":
            return {"entries": [_row(entry) for entry in files.list(path)]}, b""
        if op == "walk":
            return {"entries": [[name, *_row(entry)] for name, entry in files.walk(path)]}, b""
        if op == "write":
            files.write(path, data)
        else:
            files.remove(path)
        return {}, b""


def _row(entry: Entry) -> list[Any]:
    return [entry.name, entry.kind, entry.size]


def peek(files: DirFiles, path: str, workdir: str) -> tuple[dict[str, Any], bytes]:
    """An entry itself, links not followed: its kind, mode, and bytes or target."""
    folder, _, name = path.rpartition("/")
    try:
        parent = open_beneath(
            files.root, folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, workdir=workdir
        )
    except OSError:
        return {"kind": ""}, b""
    try:
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISLNK(info.st_mode):
            return {"kind": "link"}, os.fsencode(os.readlink(name, dir_fd=parent))
        if stat.S_ISREG(info.st_mode):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
            with os.fdopen(fd, "rb") as file:
                return {"kind": "file", "mode": info.st_mode & 0o777}, file.read()
        return {"kind": "dir" if stat.S_ISDIR(info.st_mode) else "other"}, b""
    except (FileNotFoundError, NotADirectoryError):
        return {"kind": ""}, b""
    finally:
        os.close(parent)


def main(workdir: str) -> None:
    """Serve standard input and output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, target = sys.stdin.buffer, sys.stdout.buffer
    # Code of the agent may have the same user: keep it from our memory and descriptors.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    server = Server(workdir)
    while True:
        head = source.read(_HEADER.size)
        if len(head) < _HEADER.size:
            return
        length, size = _HEADER.unpack(head)
        ask, data = json.loads(source.read(length).decode()), source.read(size)
        try:
            answer, raw = server.answer(ask, data)
        except (ToolError, OutsideError) as error:
            answer, raw = {"refused": str(error)}, b""
        except OSError as error:
            answer, raw = {"refused": f"{ask['path'] or '.'}: {error.strerror}."}, b""
        except MemoryError:
            answer, raw = {"refused": "The sandbox's memory limit was reached."}, b""
        text = json.dumps(answer).encode()
        target.write(_HEADER.pack(len(text), len(raw)) + text)
        target.write(raw)
        target.flush()
