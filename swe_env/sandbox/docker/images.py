"""The images that sandboxes start from: made once, so that starting one copies nothing.

A published image is *prepared*: its repository is replaced by one with a single commit, so that
nothing of the future is in it. A checkout of this machine is *imported* beside an otherwise empty
system, whose programs are this machine's own, bound read-only.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import shutil
import tarfile
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from swe_env.cache import build_once, cache_dir, digest
from swe_env.errors import SandboxError
from swe_env.repos.git import ATTRIBUTES, git, said
from swe_env.sandbox.base import WORKDIR, Limits
from swe_env.sandbox.docker import owner, prepare
from swe_env.sandbox.docker.container import Container, Setup
from swe_env.sandbox.docker.engine import Engine, Missing
from swe_env.sandbox.keeper import bubblewrap

_LAYOUT = 2
"""Raise when the way images are prepared changes."""
_MOST_IMPORTED = 64
_PREPARE_SECONDS = 1800.0
_ROOMY = Limits(memory=8 << 30, processes=4096, file_size=64 << 30, disk=64 << 30)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ready:
    """An image to start from."""

    image: str
    base: Path
    """Folder of this machine whose ``.git`` holds the starting state, for diffs."""
    env: dict[str, str]
    """What the image's own environment needs, its activation included."""


def prepared(engine: Engine, name: str, workdir: str, user: str) -> Ready:
    """A published image with its repository's history cut off, made once and kept.

    Raises:
        SandboxError: the image cannot be had, or holds no checkout, git or bash.
    """
    found = _inspect(engine, name) or _pull(engine, name)
    key = digest([_LAYOUT, found["Id"], workdir, user])
    folder = cache_dir("images") / f"{_slug(name)}-{key}"
    tag = f"{owner.IMAGES}/prepared:{key}"
    if folder.exists() and _inspect(engine, tag) is None:
        shutil.rmtree(folder, ignore_errors=True)
    build_once(
        folder, lambda target: _prepare(engine, found["Id"], name, workdir, user, tag, target)
    )
    env = msgspec.json.decode((folder / "environment.json").read_bytes(), type=dict[str, str])
    return Ready(tag, folder, env)


def _prepare(
    engine: Engine, image: str, name: str, workdir: str, user: str, tag: str, target: Path
) -> None:
    _log.info("preparing %s", name)
    setup = Setup(
        image=image,
        env={},
        limits=_ROOMY,
        user="0:0",
        capabilities=("CHOWN", "DAC_OVERRIDE", "FOWNER", "SETUID", "SETGID"),
        role="prepare",
    )
    with Container(engine, setup) as box:
        owned = user or "0"
        code, text = box.run(
            ["bash", "-c", prepare.SCRIPT, "sh", workdir, owned], timeout=_PREPARE_SECONDS
        )
        if code:
            reason = text.strip().splitlines()[-1:] or ["it has no bash"]
            raise SandboxError(f"The image {name} cannot be used: {reason[0].rstrip('.')}.")
        commit, _, rest = text.partition("\0")
        env = prepare.environment(rest)
        _base(target, commit.strip(), _pack(engine, box, workdir))
        (target / "environment.json").write_bytes(msgspec.json.encode(env))
        repository, _, version = tag.partition(":")
        with engine.doing(f"keep the prepared {name}"):
            conf = {"Labels": owner.kept_labels("prepared", image=image)}
            engine.api.commit(box.id, repository=repository, tag=version, conf=conf)


def _pack(engine: Engine, box: Container, workdir: str) -> bytes:
    """The one pack of the new repository."""
    with engine.doing("read the image's repository"):
        stream, _ = engine.api.get_archive(box.id, f"{workdir}/.git/objects/pack")
        data = io.BytesIO(b"".join(stream))
    with tarfile.open(fileobj=data) as tar:
        for member in tar:
            if member.name.endswith(".pack") and (file := tar.extractfile(member)):
                return file.read()
    raise SandboxError("The image's repository could not be read: its pack is missing.")


def _base(folder: Path, commit: str, pack: bytes) -> None:
    """A repository of this machine with that commit: made here, so nothing of it is the image's."""
    info = folder / ".git" / "info"
    info.mkdir(parents=True)
    (info / "attributes").write_text(ATTRIBUTES)
    for arguments, data in (
        (("init", "-q", "--template=", "."), b""),
        (("index-pack", "--stdin"), pack),
        (("update-ref", "HEAD", commit), b""),
        (("read-tree", "HEAD"), b""),
    ):
        done = git(folder, *arguments, stdin=data)
        if done.returncode:
            raise SandboxError(f"The image's repository could not be copied: {said(done)}.")


def _inspect(engine: Engine, name: str) -> dict[str, str] | None:
    try:
        with engine.doing(f"find the image {name}"):
            found: dict[str, str] = engine.api.inspect_image(name)
            return found
    except Missing:
        return None


def _pull(engine: Engine, name: str) -> dict[str, str]:
    _log.info("pulling %s", name)
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        repository, tag = name, "latest"
    try:
        with engine.doing("pull it"):
            engine.api.pull(repository, tag=tag)
    except SandboxError as error:
        raise SandboxError(
            f"The image {name} is not on this machine and cannot be pulled ({error}): check its "
            "name and the network, or `docker load` it."
        ) from error
    found = _inspect(engine, name)
    if found is None:
        raise SandboxError(f"The image {name} is not there though it was pulled.")
    return found


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)[-60:].strip("-.")


class _Imported:
    """Images of checkouts, for as long as this process runs; the least used go first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tags: OrderedDict[tuple[str, str, str], str] = OrderedDict()
        self._engine: Engine | None = None

    def get(self, engine: Engine, base: Path, user: str) -> str:
        key = (engine.host, str(base), user)
        with self._lock:
            self._engine = engine
            if key in self._tags:
                self._tags.move_to_end(key)
                return self._tags[key]
            labels = owner.labels("checkout")
            tag = f"{owner.IMAGES}/checkout:{labels[owner.SESSION]}-{digest(key)}"
            with tempfile.TemporaryFile() as file:
                _write_root(file, base, user)
                file.seek(0)
                changes = [f'LABEL {name}="{value}"' for name, value in labels.items()]
                with engine.doing(f"import the checkout {base}"):
                    # Name and tag in one: Podman takes no notice of a tag that is given apart.
                    engine.api.import_image_from_data(
                        iter(lambda: file.read(1 << 20), b""), tag, changes=changes
                    )
            self._tags[key] = tag
            while len(self._tags) > _MOST_IMPORTED:
                owner.remove_image(engine, self._tags.popitem(last=False)[1])
            return tag

    def clear(self) -> None:
        """Remove them all, at the end."""
        while self._tags and self._engine is not None:
            owner.remove_image(self._engine, self._tags.popitem()[1])

    def forget(self) -> None:
        """In a forked child: they are the parent's."""
        self.__init__()  # type: ignore[misc]


_imported = _Imported()
os.register_at_fork(after_in_child=_imported.forget)
atexit.register(_imported.clear)


def imported(engine: Engine, base: Path, user: str) -> Ready:
    """A checkout of this machine as an image.

    Raises:
        SandboxError: it cannot be read, or the engine does not take it.
    """
    if not (base / ".git").exists() and not base.is_dir():
        raise SandboxError(f"The base checkout {base} is not a folder.")
    return Ready(_imported.get(engine, base, user), base, {})


def system_binds() -> dict[str, str]:
    """What of this machine's system an imported checkout is given, read-only."""
    binds = {"/usr": "/usr"}
    for name in bubblewrap.SYSTEM:
        if Path("/", name).is_dir() and not Path("/", name).is_symlink():
            binds[f"/{name}"] = f"/{name}"
    for name in bubblewrap.ETC_FOLDERS:
        if Path("/etc", name).is_dir():
            binds[f"/etc/{name}"] = f"/etc/{name}"
    return binds


def _write_root(file: io.IOBase, base: Path, user: str) -> None:
    uid, _, gid = (user or "0").partition(":")

    def owned(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid, info.gid = int(uid), int(gid or 0)
        info.uname = info.gname = ""
        return info

    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for info, data in _skeleton():
            tar.addfile(info if info.name == "etc" else owned(info), io.BytesIO(data))
        try:
            tar.add(base, WORKDIR.lstrip("/"), filter=owned)
        except OSError as error:
            raise SandboxError(
                f"The base checkout {base} cannot be read: {error.strerror}."
            ) from error


def _skeleton() -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """An otherwise empty system: folders, links into /usr, a few harmless files."""

    def entry(
        name: str, kind: bytes, mode: int, data: bytes = b"", link: str = ""
    ) -> tuple[tarfile.TarInfo, bytes]:
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.linkname, info.size = kind, mode, link, len(data)
        return info, data

    for name in ("usr", "etc", "root", "dev", "proc", "sys", "run", "var", "opt"):
        yield entry(name, tarfile.DIRTYPE, 0o755)
    yield entry("tmp", tarfile.DIRTYPE, 0o1777)
    yield entry("var/tmp", tarfile.SYMTYPE, 0o777, link="../tmp")
    for name in bubblewrap.SYSTEM:
        if Path("/", name).is_symlink():
            yield entry(name, tarfile.SYMTYPE, 0o777, link=str(Path("/", name).readlink()))
    for name, text in bubblewrap.ETC.items():
        yield entry(f"etc/{name}", tarfile.REGTYPE, 0o644, text.encode())
    for name in bubblewrap.ETC_FILES:
        if Path("/etc", name).is_file():
            yield entry(f"etc/{name}", tarfile.REGTYPE, 0o644, Path("/etc", name).read_bytes())
