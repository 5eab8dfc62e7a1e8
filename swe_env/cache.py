"""Where things built once are kept: ``SWE_ENV_CACHE``, else the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
from filelock import FileLock

from swe_env import disk
from swe_env.errors import InfrastructureError, SweError


def cache_dir(*parts: str) -> Path:
    """A folder of the cache, created when it does not exist.

    Raises:
        InfrastructureError: it cannot be made.
    """
    root = os.environ.get("SWE_ENV_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "swe_env"
    path = base.expanduser().absolute().joinpath(*parts)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InfrastructureError(
            f"The cache folder {path} cannot be made ({error.strerror}): point SWE_ENV_CACHE at a "
            "folder that can be written to."
        ) from error
    return path


def digest(value: object) -> str:
    """First 16 hexadecimal digits of the SHA-256 of `value` as canonical JSON."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:16]


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """`target`, made by ``build(folder)`` if it is not there; many processes may ask at once.

    `build` fills an empty folder beside `target`, which takes the name only when it is complete:
    a killed build leaves nothing under that name.

    Raises:
        InfrastructureError: the disk is full or cannot be written to; nothing is left there.
    """
    if target.exists():
        return target
    try:
        return _build_once(target, build)
    except (OSError, SweError) as error:
        # What cannot be told from `build`'s own errors by its type can be by the disk's words.
        if isinstance(error, InfrastructureError) or not (said := disk.refusal(error)):
            raise
        raise InfrastructureError(
            f"{target.name} could not be put into the cache {target.parent} ({said}): free space "
            "there and in the folder for temporary files, or point SWE_ENV_CACHE at another folder."
        ) from error


def _build_once(target: Path, build: Callable[[Path], None]) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            try:
                build(folder)
                folder.chmod(0o755)
                folder.rename(target)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    return target
