"""The text files of a workspace for `search`; a base's are read once for all its episodes."""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

from swe_env.errors import ToolError
from swe_env.sandbox.base import Files
from swe_env.sandbox.files import DirFiles
from swe_env.sandbox.layered import LayeredFiles, Touched
from swe_env.tools.ignore import hidden, visible
from swe_env.tools.text import is_binary

LARGE = 4 << 20
"""Bytes of a file beyond which it is not searched."""
_LARGEST_BASE = 64 << 20
_KEPT = 128 << 20
"""Bytes of text of the bases used last that stay in memory."""

Key = tuple[str, ...]
"""A path's components: files sort by them as a walk meets them."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """The searchable files of one base checkout, in the order of a walk."""

    keys: list[Key]
    names: list[str]
    texts: list[bytes]
    folders: frozenset[str]
    """Every folder that holds one of them at any depth; the root as the empty path."""
    size: int


_corpora: OrderedDict[Hashable, Corpus | None] = OrderedDict()
_lock = threading.Lock()


def _new_lock() -> None:
    """In a forked child: a thread of the parent may have held it."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)


def contents(files: Files, folder: str) -> Iterator[tuple[str, bytes]]:
    """(path, bytes) of the text files below a folder that git would not ignore, sorted.

    Args:
        files: the workspace.
        folder: relative and normalised; empty for all.
    """
    if isinstance(files, LayeredFiles):
        touched = files.touched()
        corpus = _corpus(files.base)
        if corpus is not None and _covers(files, corpus, touched, folder):
            yield from _merged(files, folder, corpus, touched)
            return
    yield from _read(files, folder)


def _read(files: Files, folder: str) -> Iterator[tuple[str, bytes]]:
    for name, entry in visible(files, folder):
        if entry.size <= LARGE and (data := text_or_none(files, name)) is not None:
            yield name, data


def text_or_none(files: Files, name: str) -> bytes | None:
    """The file's bytes; None when it is binary, or gone or unreadable since it was listed."""
    try:
        data = files.read(name)
    except ToolError:
        return None
    return None if is_binary(data) else data


def _covers(files: LayeredFiles, corpus: Corpus, touched: Touched, folder: str) -> bool:
    """Whether the base's files and those touched are all there is to search."""
    if folder not in corpus.folders or folder in touched:
        return False
    # In a folder that is ignored, but asked for by name, what is new is searched too. No file can
    # have this name, so it is the folder that tells.
    changed = touched.paths or touched.trees
    return not (folder and changed and hidden(files, [f"{folder}/\0"]))


def _merged(
    files: LayeredFiles, folder: str, corpus: Corpus, touched: Touched
) -> Iterator[tuple[str, bytes]]:
    """The base's files with those touched in their places."""
    first, last = _range(corpus.keys, folder)
    for key, name, data in _changed(files, folder, touched):
        place = bisect_left(corpus.keys, key, first, last)
        yield from _untouched(corpus, first, place, touched)
        first = place
        yield name, data
    yield from _untouched(corpus, first, last, touched)


def _untouched(
    corpus: Corpus, first: int, last: int, touched: Touched
) -> Iterator[tuple[str, bytes]]:
    pairs = zip(corpus.names[first:last], corpus.texts[first:last], strict=True)
    if touched.paths or touched.trees:
        return (pair for pair in pairs if pair[0] not in touched)
    return pairs


def _range(keys: list[Key], folder: str) -> tuple[int, int]:
    if not folder:
        return 0, len(keys)
    key = _key(folder)
    after = (*key[:-1], key[-1] + "\0")  # sorts behind all that is below the folder
    return bisect_left(keys, key), bisect_left(keys, after)


def _changed(files: LayeredFiles, folder: str, touched: Touched) -> list[tuple[Key, str, bytes]]:
    """The searchable files among those touched, in order."""
    entries = {path: files.lstat(path) for path in touched.paths}
    for tree in touched.trees:
        try:
            entries |= dict(files.walk(tree))
        except ToolError:
            continue  # removed since it was seen
    names = {
        path
        for path, entry in entries.items()
        if entry is not None and entry.kind == "file" and entry.size <= LARGE
        if not folder or path.startswith(f"{folder}/")
    }
    found = []
    for name in names - hidden(files, names):
        if (data := text_or_none(files, name)) is not None:
            found.append((_key(name), name, data))
    return sorted(found)


def _key(path: str) -> Key:
    return tuple(path.split("/"))


def _corpus(base: Path) -> Corpus | None:
    """The base's files, read on first use; None when they are too many to keep."""
    try:
        info = base.stat()
    except OSError:
        return None
    identity = (str(base), info.st_dev, info.st_ino, info.st_mtime_ns, info.st_ctime_ns)
    with _lock:
        if identity not in _corpora:
            _corpora[identity] = _build(base)
            while sum(kept.size for kept in _corpora.values() if kept) > _KEPT:
                _corpora.popitem(last=False)
        _corpora.move_to_end(identity)
        return _corpora[identity]


def _build(base: Path) -> Corpus | None:
    root = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    files = DirFiles(root, str(base), base=base)
    os.close(root)
    names: list[str] = []
    texts: list[bytes] = []
    folders = {""}
    size = 0
    try:
        for name, data in _read(files, ""):
            size += len(data)
            if size > _LARGEST_BASE:
                return None
            names.append(name)
            texts.append(data)
            above = name.rpartition("/")[0]
            while above not in folders:
                folders.add(above)
                above = above.rpartition("/")[0]
    except ToolError:
        return None
    finally:
        files.close()
    return Corpus([_key(name) for name in names], names, texts, frozenset(folders), size)
