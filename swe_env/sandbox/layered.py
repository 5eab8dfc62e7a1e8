"""`LayeredFiles`: files of an overlay that know which of them are still the shared base's own."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from swe_env.errors import ToolError
from swe_env.sandbox.base import Entry
from swe_env.sandbox.files import DirFiles, entry_of

_MARKS = ("opaque", "redirect")
"""Extended attributes of an upper folder that says more than what lies in it."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Touched:
    """What in a workspace may differ from its base; everything else is the base's, to the byte."""

    paths: set[str] = field(default_factory=set)
    """Entries that were made, changed or removed."""
    trees: set[str] = field(default_factory=set)
    """Folders made, replaced or renamed: all that lies in them, or lay in them, may differ."""

    def __contains__(self, path: str) -> bool:
        """Whether the entry at `path` may differ from the base's."""
        if path in self.paths or path in self.trees:
            return True
        above = path.rpartition("/")[0]
        while above:
            if above in self.paths or above in self.trees:
                return True
            above = above.rpartition("/")[0]
        return False


class LayeredFiles(DirFiles):
    """`DirFiles` on an overlay's merged view, with its base and upper layer beside it."""

    def __init__(self, root: int, workdir: str, *, base: Path, upper: int) -> None:
        """`root` and `upper` are copied; `base` is the overlay's lower layer."""
        super().__init__(root, workdir, base=base)
        self.base: Path = base
        self._upper = os.dup(upper)

    def use_upper(self, upper: int) -> None:
        """Take another folder for the upper layer, after `move_to`."""
        if self._upper >= 0:
            os.close(self._upper)
        self._upper = os.dup(upper)

    def close(self) -> None:
        """Close the descriptors; safe to call twice."""
        super().close()
        if self._upper >= 0:
            os.close(self._upper)
            self._upper = -1

    def lstat(self, path: str) -> Entry | None:
        """The entry at `path` itself, a link not followed; None when there is none."""
        with self._errors(path):
            try:
                fd = self._open(path, os.O_PATH | os.O_NOFOLLOW)
            except (FileNotFoundError, NotADirectoryError):
                return None
            try:
                return entry_of(path.rpartition("/")[2], os.fstat(fd))
            finally:
                os.close(fd)

    def passes_for_base(self, path: str) -> bool:
        """Whether git, which looks at size and second, would take an entry for the base's own."""
        try:
            old = (self.base / path).lstat()
            fd = self._open(path, os.O_PATH | os.O_NOFOLLOW)
        except (OSError, ToolError):
            return False
        try:
            new = os.fstat(fd)
        finally:
            os.close(fd)
        return (old.st_size, int(old.st_mtime)) == (new.st_size, int(new.st_mtime))

    def touched(self) -> Touched:
        """What the upper layer holds, any `.git` apart.

        Takes time with what was changed, not with the checkout.
        """
        found = Touched()
        with self._errors(""):
            for path, tree in _entries(self._upper, "", self.base):
                (found.trees if tree else found.paths).add(path)
        return found


def _entries(folder: int, prefix: str, base: Path) -> Iterator[tuple[str, bool]]:
    """(path, whether it is a tree of its own) of each entry that is not only a way to others."""
    with os.scandir(folder) as listed:
        entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in listed]
    for name, is_folder in entries:
        if name == ".git":
            continue
        path = prefix + name
        if not is_folder:
            yield path, False
            continue
        try:
            inner = os.open(name, _FOLDER, dir_fd=folder)
        except OSError:  # gone since it was listed, or made by the overlay for itself alone
            yield path, True
            continue
        try:
            if _marked(inner) or not _is_folder(base / path):
                yield path, True
            else:
                yield from _entries(inner, f"{path}/", base)
        finally:
            os.close(inner)


def _marked(folder: int) -> bool:
    with contextlib.suppress(OSError):
        return any(name.rpartition(".")[2] in _MARKS for name in os.listxattr(folder))
    return True


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False
