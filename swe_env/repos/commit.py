"""A repository of exactly one commit, written without starting git.

The formats are git's own: gitformat-pack(5) (a pack and its index, version 2), gitformat-index(5)
(version 2, with the cached trees). A pack that another checkout's files lie in saves compressing
the same contents again.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
import shutil
import stat
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from swe_env.errors import TaskError
from swe_env.repos.git import ATTRIBUTES, AUTHOR, EMAIL, SECONDS, reserved

_TIME = SECONDS * 10**9
"""Of every file, in nanoseconds."""
_LATER = _TIME + 10**9
"""Git compares contents, not times, where the index is not newer than the file."""
_CONFIG = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n"
_BRANCH = "refs/heads/main"
_COMMIT, _TREE, _BLOB = 1, 2, 3
_KINDS = {_COMMIT: b"commit", _TREE: b"tree", _BLOB: b"blob"}
_PART = 1 << 20
_LEVEL = 1
_FAR = 1 << 31
"""Marks an offset that stands in the table of 64-bit ones, at the place given by the other bits."""
_FAR_FROM = 1 << 31
"""The first offset that stands there."""


def head(checkout: Path) -> str:
    """Name of the only commit of a checkout that `commit_all` made."""
    return (checkout / ".git" / _BRANCH).read_text().strip()


def commit_all(folder: Path, known: Path | None = None) -> str:
    """Make `folder` a repository of exactly one commit holding every file; returns its name.

    The commit's name depends on the files alone. An earlier `.git` is dropped, and nothing but the
    commit is left: no reflog, hook, remote, tag or unreachable object. All files get one time:
    theirs would tell which were changed last. Like git it leaves out empty folders, and what is
    neither file, link nor folder.

    Args:
        folder: the files.
        known: another checkout that was made here, whose packed files are taken over where
            `folder` has the same; nothing else of it gets in.

    Raises:
        TaskError: git takes no file of such a name, or a file cannot be read.
    """
    repository = folder / ".git"
    if repository.is_dir() and not repository.is_symlink():
        shutil.rmtree(repository)
    else:
        repository.unlink(missing_ok=True)
    for part in ("info", "objects/info", "objects/pack", "refs/heads", "refs/tags"):
        (repository / part).mkdir(parents=True)
    (repository / "info" / "attributes").write_text(ATTRIBUTES)
    (repository / "config").write_text(_CONFIG)
    (repository / "HEAD").write_text(f"ref: {_BRANCH}\n")
    _stamp(folder, _TIME)
    with _Pack(repository / "objects" / "pack", _packed(known) if known else {}) as pack:
        try:
            root = _folder(pack, os.fsencode(folder))
        except PermissionError as error:
            name = os.fsdecode(error.filename or b"a file")
            raise TaskError(f"The files cannot be committed: {name} cannot be read.") from error
        who = f"{AUTHOR} <{EMAIL}> {SECONDS} +0000"
        text = f"tree {root.name.hex()}\nauthor {who}\ncommitter {who}\n\nbase\n"
        commit = pack.add(_COMMIT, text.encode()).hex()
    (repository / "index").write_bytes(_index(root))
    (repository / _BRANCH).write_text(f"{commit}\n")
    _stamp(repository, _LATER)
    return commit


def stamp(folder: Path) -> None:
    """Give a checkout's files the one time that `commit_all` gives them."""
    _stamp(folder, _TIME)
    _stamp(folder / ".git", _LATER)


def _stamp(folder: Path, time: int) -> None:
    """Give a folder and everything in it one time, a `.git` left out."""
    for top, names, files in os.walk(folder):
        if ".git" in names:
            names.remove(".git")
        for path in (top, *(f"{top}/{name}" for name in sorted((*names, *files)))):
            os.utime(path, ns=(time, time), follow_symlinks=False)


@dataclass(slots=True)
class _Folder:
    """A folder whose files and trees are in the pack."""

    prefix: bytes
    """Its path in the repository, with a slash at the end; empty for the root."""
    name: bytes = b""
    """Of its tree object."""
    entries: list[bytes] = field(default_factory=list)
    """Entries of the index in its order, those of folders below included."""
    below: list[_Folder] = field(default_factory=list)
    """Those that hold files."""


def _folder(pack: _Pack, path: bytes, prefix: bytes = b"") -> _Folder:
    """Put what is below `path` into the pack."""
    made, tree = _Folder(prefix), []
    for entry in sorted(os.scandir(path), key=_place):
        if not prefix and entry.name == b".git":
            continue
        info = entry.stat(follow_symlinks=False)
        link = stat.S_ISLNK(info.st_mode)
        if reserved(entry.name) or (link and entry.name.lower() == b".gitmodules"):
            refused = os.fsdecode(prefix + entry.name)
            raise TaskError(f"The files cannot be committed: git takes no file named {refused}.")
        if stat.S_ISDIR(info.st_mode):
            inner = _folder(pack, entry.path, prefix + entry.name + b"/")
            if not inner.entries:
                continue
            made.below.append(inner)
            made.entries += inner.entries
            tree.append(b"40000 %b\0%b" % (entry.name, inner.name))
            continue
        if link:
            target = os.readlink(entry.path)  # noqa: PTH115 - a path of bytes
            mode, name = 0o120000, pack.add(_BLOB, target)
        elif stat.S_ISREG(info.st_mode):
            mode = 0o100755 if info.st_mode & 0o100 else 0o100644
            name = pack.add_file(entry.path, info.st_size)
        else:
            continue
        made.entries.append(_index_entry(info, mode, name, prefix + entry.name))
        tree.append(b"%o %b\0%b" % (mode, entry.name, name))
    if tree or not prefix:
        made.name = pack.add(_TREE, b"".join(tree))
    return made


def _place(entry: os.DirEntry[bytes]) -> bytes:
    """Git sorts folders as if their names ended in a slash."""
    return entry.name + b"/" if entry.is_dir(follow_symlinks=False) else entry.name


class _Pack:
    """A pack being written; as a context it gets its index and names when all went well."""

    def __init__(self, folder: Path, known: dict[bytes, memoryview]) -> None:
        self._folder, self._known = folder, known
        self._file: BinaryIO = (folder / "new").open("w+b")
        self._file.write(bytes(12))  # the header, which says how many objects come
        self._end = 12
        self._objects: dict[bytes, tuple[int, int]] = {}
        """Name → (offset, CRC-32)."""

    def __enter__(self) -> _Pack:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._file:
            if kind is None:
                self._finish()

    def add(self, kind: int, data: bytes) -> bytes:
        """Add an object; returns its name."""
        name = hashlib.sha1(b"%b %d\0%b" % (_KINDS[kind], len(data), data)).digest()
        if name not in self._objects and not self._take_over(name):
            self._write(name, (_head(kind, len(data)), zlib.compress(data, _LEVEL)))
        return name

    def add_file(self, path: bytes, size: int) -> bytes:
        """Add the content of a file of `size` bytes; returns its name."""
        with open(path, "rb") as file:  # noqa: PTH123 - a path of bytes
            if size <= _PART:
                return self.add(_BLOB, file.read())
            summed = hashlib.sha1(b"blob %d\0" % size)
            for part in iter(lambda: file.read(_PART), b""):
                summed.update(part)
            name = summed.digest()
            if name not in self._objects and not self._take_over(name):
                file.seek(0)
                self._write(name, _compressed(file, size))
        return name

    def _take_over(self, name: bytes) -> bool:
        if name in self._known:
            self._write(name, (self._known[name],))
        return name in self._known

    def _write(self, name: bytes, parts: Iterable[bytes | memoryview]) -> None:
        start, crc = self._end, 0
        for part in parts:
            self._file.write(part)
            self._end += len(part)
            crc = zlib.crc32(part, crc)
        self._objects[name] = (start, crc)

    def _finish(self) -> None:
        self._file.seek(0)
        self._file.write(struct.pack(">4sII", b"PACK", 2, len(self._objects)))
        self._file.seek(0)
        summed = hashlib.sha1()
        for part in iter(lambda: self._file.read(_PART), b""):
            summed.update(part)
        self._file.write(summed.digest())
        stem = self._folder / f"pack-{summed.hexdigest()}"
        Path(self._file.name).rename(f"{stem}.pack")
        Path(f"{stem}.idx").write_bytes(self._listed(summed.digest()))
        for suffix in ("pack", "idx"):
            Path(f"{stem}.{suffix}").chmod(0o444)

    def _listed(self, pack: bytes) -> bytes:
        """The pack's index."""
        names = sorted(self._objects)
        places = [self._objects[name] for name in names]
        firsts = Counter(name[0] for name in names)
        far = [start for start, _ in places if start >= _FAR_FROM]
        numbered = itertools.count(_FAR)
        starts = [start if start < _FAR_FROM else next(numbered) for start, _ in places]
        data = b"".join((
            struct.pack(">4sI", b"\xfftOc", 2),
            struct.pack(">256I", *itertools.accumulate(firsts[first] for first in range(256))),
            *names,
            struct.pack(f">{len(names)}I", *(crc for _, crc in places)),
            struct.pack(f">{len(names)}I", *starts),
            struct.pack(f">{len(far)}Q", *far),
            pack,
        ))  # fmt: skip
        return data + hashlib.sha1(data).digest()


def _packed(checkout: Path) -> dict[bytes, memoryview]:
    """Name → object as it lies in the pack of a checkout; those that are no other's difference."""
    found: dict[bytes, memoryview] = {}
    for path in (checkout / ".git" / "objects" / "pack").glob("*.pack"):
        with path.open("rb") as file:
            pack = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        found |= _objects(pack, path.with_suffix(".idx").read_bytes())
    return found


def _objects(pack: memoryview, index: bytes) -> dict[bytes, memoryview]:
    (number,) = struct.unpack_from(">I", index, 8 + 255 * 4)
    names_at, starts_at = 8 + 256 * 4, 8 + 256 * 4 + number * 24
    starts = list(struct.unpack_from(f">{number}I", index, starts_at))
    far = starts_at + number * 4
    for place, start in enumerate(starts):
        if start >= _FAR:
            (starts[place],) = struct.unpack_from(">Q", index, far + (start - _FAR) * 8)
    ends = dict(itertools.pairwise(sorted([*starts, len(pack) - 20])))
    names = (index[at : at + 20] for at in range(names_at, names_at + number * 20, 20))
    return {
        name: pack[start : ends[start]]
        for name, start in zip(names, starts, strict=True)
        if pack[start] >> 4 & 7 in _KINDS
    }


def _head(kind: int, size: int) -> bytes:
    """What stands before an object in a pack: its type and size, four bits, then seven a byte."""
    out, low, size = bytearray(), kind << 4 | size & 15, size >> 4
    while size:
        out.append(low | 0x80)
        low, size = size & 0x7F, size >> 7
    out.append(low)
    return bytes(out)


def _compressed(file: BinaryIO, size: int) -> Iterator[bytes]:
    """A large file as it stands in a pack, part by part."""
    yield _head(_BLOB, size)
    compressor = zlib.compressobj(_LEVEL)
    for part in iter(lambda: file.read(_PART), b""):
        yield compressor.compress(part)
    yield compressor.flush()


def _index_entry(info: os.stat_result, mode: int, name: bytes, path: bytes) -> bytes:
    """A file in the index: what git compares with the file's own, its object, its path."""
    second = 10**9
    values = (
        *divmod(info.st_ctime_ns, second), *divmod(info.st_mtime_ns, second),
        info.st_dev, info.st_ino, mode, info.st_uid, info.st_gid, info.st_size,
    )  # fmt: skip
    data = struct.pack(">10I", *(value & 0xFFFFFFFF for value in values)) + name
    data += struct.pack(">H", min(len(path), 0xFFF)) + path
    return data + bytes(8 - len(data) % 8)


def _index(root: _Folder) -> bytes:
    """The index of a repository in which nothing was changed."""
    trees = b"".join(_cached_trees(root))
    data = b"".join((
        struct.pack(">4sII", b"DIRC", 2, len(root.entries)),
        *root.entries,
        struct.pack(">4sI", b"TREE", len(trees)),
        trees,
    ))  # fmt: skip
    return data + hashlib.sha1(data).digest()


def _cached_trees(folder: _Folder) -> Iterator[bytes]:
    """The index's table of tree objects, a folder before those in it."""
    own = folder.prefix[:-1].rpartition(b"/")[2]
    yield b"%b\0%d %d\n%b" % (own, len(folder.entries), len(folder.below), folder.name)
    for inner in sorted(folder.below, key=lambda inner: (len(inner.prefix), inner.prefix)):
        yield from _cached_trees(inner)
