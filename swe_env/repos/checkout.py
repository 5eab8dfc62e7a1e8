"""Checkouts: a task's starting state, built once, one clean commit and no way to the future."""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from swe_env.cache import build_once, cache_dir, digest
from swe_env.errors import PatchError, TaskError
from swe_env.repos import archives
from swe_env.repos.commit import commit_all, head, stamp
from swe_env.repos.git import git, must, said
from swe_env.repos.patches import apply_patch, plainly_applied
from swe_env.types import Source, Task

_LAYOUT = 5
"""Raise when the way a checkout is made changes."""
_MADE_BY = (_LAYOUT, zlib.ZLIB_RUNTIME_VERSION)
"""Part of a checkout's key: what one library compressed would stand out among another's."""
_JUNK = {".git", ".hg", "__pycache__", ".venv", ".tox", ".nox", "node_modules"}
_JUNK_SUFFIXES = (".pyc", ".pyo", ".orig", ".rej")
_log = logging.getLogger(__name__)


def pristine(source: Source, base_commit: str = "") -> Path:
    """The repository's files before `base_patch`, as a repository of one deterministic commit.

    Args:
        source: where the files come from.
        base_commit: commit to check out; needed for git only.

    Raises:
        TaskError: the source cannot be had.
    """
    wanted = base_commit if source.kind == "git" else ""
    key: object = [_MADE_BY, source, wanted]
    if source.kind == "folder":
        key = [_MADE_BY, source.location, _folder_state(Path(source.location))]
    target = cache_dir("pristine") / f"{_slug(source.location)}-{digest(key)}"
    return build_once(target, lambda folder: _fill(source, wanted, folder))


def base(task: Task) -> Path:
    """The agent's starting state: `source` at `base_commit` with `base_patch`, one clean commit.

    Raises:
        TaskError: the task has no source, or its source or patch no longer fits.
    """
    source = task.source
    if source is None:
        raise TaskError(f"{task.instance_id} has no source to check out and no image.")
    if not task.base_patch and source.kind != "folder":
        return pristine(source, task.base_commit)
    key = [_MADE_BY, source, task.base_commit, task.base_patch]
    target = cache_dir("bases") / f"{_slug(task.instance_id)}-{digest(key)}"

    def build(folder: Path) -> None:
        origin = pristine(source, task.base_commit)
        if source.kind != "git" and task.base_commit and head(origin) != task.base_commit:
            raise TaskError(
                f"{source.location} is not what {task.instance_id} was made from: its files have "
                f"commit {head(origin)[:12]}, the task wants {task.base_commit[:12]}."
            )
        changed = plainly_applied(origin, task.base_patch)
        if changed is None:
            _patched_copy(origin, task, folder)
        else:
            _copy_tree(str(origin), str(folder), changed)
        commit_all(folder, known=origin)

    return build_once(target, build)


def with_files(checkout: Path, extra: Path) -> Path:
    """`checkout` with the files of `extra` in it, which its repository ignores.

    So they are there for the tests, and no diff of the workspace has them.
    """
    target = cache_dir("bases") / f"{checkout.name}-{digest([_MADE_BY, str(checkout), str(extra)])}"

    def build(folder: Path) -> None:
        shutil.copytree(checkout, folder, symlinks=True, dirs_exist_ok=True)
        shutil.copytree(extra, folder, symlinks=True, dirs_exist_ok=True)
        names = [p.relative_to(extra).as_posix() for p in extra.rglob("*") if not p.is_dir()]
        exclude = folder / ".git" / "info" / "exclude"
        exclude.parent.mkdir(exist_ok=True)
        exclude.write_text("".join(f"/{_escaped(name)}\n" for name in sorted(names)))
        stamp(folder)

    return build_once(target, build)


def _escaped(name: str) -> str:
    """A path as a pattern of git's ignore files that means just it."""
    return re.sub(r"([\\*?\[\]#! ])", r"\\\1", name)


def _slug(text: str) -> str:
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in text.rstrip("/"))
    return kept[-60:].strip("-.") or "checkout"


def _patched_copy(origin: Path, task: Task, folder: Path) -> None:
    """Copy what git makes of `origin` with the base patch."""
    with tempfile.TemporaryDirectory(prefix=".patched-", dir=folder.parent) as temporary:
        patched = Path(temporary)
        # Git writes a new file for each one it changes, so links to the pristine ones will do.
        _link_tree(str(origin), temporary)
        try:
            apply_patch(patched, task.base_patch)
        except PatchError as error:
            raise TaskError(f"The base patch of {task.instance_id} fails. {error}") from error
        # Copied, as the files that git wrote would be the youngest and the links' counts tell.
        _copy_tree(temporary, str(folder), {})


def _link_tree(origin: str, folder: str) -> None:
    """Give every file below `origin` a second name in `folder`, a `.git` left out."""
    with os.scandir(origin) as entries:
        for entry in entries:
            target = f"{folder}/{entry.name}"
            if not entry.is_dir(follow_symlinks=False):
                try:
                    os.link(entry.path, target, follow_symlinks=False)
                except OSError:  # the file system has no such names
                    shutil.copy2(entry.path, target, follow_symlinks=False)
            elif entry.name != ".git":
                Path(target).mkdir()
                _link_tree(entry.path, target)


def _copy_tree(origin: str, folder: str, changed: Mapping[str, bytes], prefix: str = "") -> None:
    """Write the files of `origin` into `folder`, a `.git` left out, those in `changed` as there.

    Each is written once, in its turn and in the same way: neither links, modes, times nor where
    it lies on the disk tell which file was changed.
    """
    # Not in the folder's own order: in that a file which git wrote anew may be the last.
    for entry in sorted(os.scandir(origin), key=lambda entry: entry.name):
        target, path = f"{folder}/{entry.name}", f"{prefix}{entry.name}"
        info = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            if entry.name != ".git":
                Path(target).mkdir()
                _copy_tree(entry.path, target, changed, f"{path}/")
        elif stat.S_ISLNK(info.st_mode):
            Path(target).symlink_to(Path(entry.path).readlink())
        elif stat.S_ISREG(info.st_mode):
            with open(entry.path, "rb") as old, open(target, "wb") as new:  # noqa: PTH123
                shutil.copyfileobj(io.BytesIO(changed[path]) if path in changed else old, new)
                os.fchmod(new.fileno(), 0o755 if info.st_mode & 0o100 else 0o644)


def _fill(source: Source, commit: str, folder: Path) -> None:
    if source.kind == "sdist":
        archives.unpack(archives.download(source.location, source.version, source.sha256), folder)
    elif source.kind == "folder":
        _copy_folder(Path(source.location), folder)
    else:
        _fetch(source.location, commit, folder)
    _clean(folder)
    commit_all(folder)


def _clean(folder: Path) -> None:
    for top, names, files in os.walk(folder):
        for name in [name for name in names if name in _JUNK]:
            path = Path(top, name)
            names.remove(name)
            path.unlink() if path.is_symlink() else shutil.rmtree(path)
        for name in files:
            if name.endswith(_JUNK_SUFFIXES) or name == ".git":
                Path(top, name).unlink()


def _folder_files(folder: Path) -> list[str]:
    """Files of a folder: what its repository does not ignore, or everything."""
    if not folder.is_dir():
        raise TaskError(f"There is no folder {folder}.")
    if (folder / ".git").exists():
        listed = must(folder, "ls-files", "-z", "-co", "--exclude-standard").split("\0")
        names = [name for name in listed if name and (folder / name).is_file()]
    else:
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()]
    return sorted(name for name in names if not _JUNK & set(Path(name).parts))


def _folder_state(folder: Path) -> list[tuple[str, int, int]]:
    stats = [(name, (folder / name).lstat()) for name in _folder_files(folder)]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _copy_folder(origin: Path, folder: Path) -> None:
    for name in _folder_files(origin):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(origin / name, folder / name, follow_symlinks=False)


def origins(location: str) -> list[str]:
    """Where a git repository may be: the mirror in ``SWE_ENV_MIRRORS``, then its origin."""
    short = location.removesuffix(".git")
    name = "/".join(short.split("/")[-2:]) if "://" in short or "@" in short else short
    found: list[str] = []
    if mirrors := os.environ.get("SWE_ENV_MIRRORS"):
        mirror = Path(mirrors).expanduser() / f"{name.replace('/', '__')}.git"
        if mirror.is_dir():
            found.append(str(mirror.absolute()))
    plain = location.count("/") == 1 and "://" not in location and not Path(location).exists()
    return [*found, f"https://github.com/{location}.git" if plain else location]


def _fetch(location: str, commit: str, folder: Path) -> None:
    """Put the files of one commit into `folder`; the repository they came from is dropped."""
    if not commit:
        raise TaskError(f"A task from {location} needs a base_commit.")
    problem = ""
    with tempfile.TemporaryDirectory(prefix=".git-", dir=folder.parent) as temporary:
        store = Path(temporary)
        must(store, "init", "-q", "--bare", "--template=")
        for origin in origins(location):
            _log.info("fetching %s at %s", location, commit[:12])
            done = git(store, "fetch", "-q", "--no-tags", "--depth=1", origin, commit)
            if done.returncode:
                # A server that hands out no bare commit names still hands out its branches.
                git(store, "fetch", "-q", origin, "+refs/*:refs/all/*")
            if git(store, "cat-file", "-e", f"{commit}^{{commit}}").returncode == 0:
                must(store, f"--work-tree={folder}", "checkout", "-q", commit, "--", ".")
                return
            problem = said(done)
    raise TaskError(
        f"Commit {commit[:12]} of {location} could not be fetched ({problem}): check the network, "
        "or point SWE_ENV_MIRRORS at a folder with a bare mirror named owner__name.git."
    )
