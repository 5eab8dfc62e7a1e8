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


def cache_dir(*parts: str) -> Path:
    """A folder of the cache, created when it does not exist."""
    root = os.environ.get("SWE_ENV_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "swe_env"
    path = base.expanduser().absolute().joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def digest(value: object) -> str:
    """First 16 hexadecimal digits of the SHA-256 of `value` as canonical JSON."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:16]


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """`target`, made by ``build(folder)`` if it is not there; many processes may ask at once.

    `build` fills an empty folder beside `target`, which takes the name only when it is complete:
    a killed build leaves nothing under that name.
    """
    if target.exists():
        return target
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
