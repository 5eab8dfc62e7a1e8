"""Archives of a package index: downloaded once through pip, verified, kept; sdists unpacked."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

from swe_env.cache import build_once, cache_dir
from swe_env.errors import TaskError

_ENDINGS = {"sdist": (".tar.gz", ".zip", ".tar.bz2", ".tgz"), "wheel": (".whl",)}


def download(
    name: str, version: str, sha256: str = "", *, kind: Literal["sdist", "wheel"] = "sdist"
) -> Path:
    """The archive, from the cache or through pip (which reads the user's index settings).

    Nothing of it is installed, and nothing that it depends on is fetched.

    Args:
        name: distribution name.
        version: exact version.
        sha256: expected hash, hexadecimal; empty to accept what the index gives.
        kind: ``sdist``, or ``wheel`` for a pure Python wheel or the one that fits this machine.

    Raises:
        TaskError: it cannot be had, or its hash is another.
    """
    label = re.sub(r"[-_.]+", "-", name).lower()
    folder = cache_dir(f"{kind}s") / f"{label}-{version}-{sha256[:16] or 'unpinned'}"
    kept = build_once(folder, lambda target: _download(name, version, sha256, kind, target))
    archive = _archive(kept, kind)
    if archive is None or (sha256 and hash_of(archive) != sha256):
        shutil.rmtree(kept, ignore_errors=True)
        raise TaskError(
            f"The kept {kind} of {name} {version} was damaged and is removed: try again."
        )
    return archive


def hash_of(archive: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def _archive(folder: Path, kind: str) -> Path | None:
    found = sorted(path for path in folder.iterdir() if path.name.endswith(_ENDINGS[kind]))
    return found[0] if found else None


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    return [sys.executable, "-m", "uv", "tool", "run", "--isolated", "pip"]


def _download(name: str, version: str, sha256: str, kind: str, target: Path) -> None:
    said = ""
    with tempfile.TemporaryDirectory(prefix="swe-env-pip-") as temporary:
        work = Path(temporary)
        pins = work / "requirements.txt"
        pins.write_text(
            f"{name}=={version}" + (f" --hash=sha256:{sha256}" if sha256 else "") + "\n"
        )
        other = "--no-binary=:all:" if kind == "sdist" else "--only-binary=:all:"
        command = [*_pip(), "download", "--quiet", "--no-deps", other]
        command += ["--disable-pip-version-check", "-d", str(work), "-r", str(pins)]
        # pip keeps the verified archive and then asks its build backend for metadata that nobody
        # needs: without build isolation that second step is quick, and free to fail.
        for extra in (["--no-build-isolation"], []):
            done = subprocess.run([*command, *extra], capture_output=True, text=True, check=False)
            if archive := _archive(work, kind):
                break
            said = done.stderr
        else:
            raise TaskError(f"{name} {version} could not be downloaded: {_why(said, kind)}.")
        if sha256 and hash_of(archive) != sha256:
            raise TaskError(f"{name} {version} from the index has another sha256 than {sha256}.")
        shutil.copyfile(archive, target / archive.name)


def _why(stderr: str, kind: str) -> str:
    if "DO NOT MATCH THE HASHES" in stderr:
        return "what the index offers has another sha256 than the one pinned"
    if "No matching distribution" in stderr or "Could not find a version" in stderr:
        return (
            f"the package index cannot be reached, or has no {kind} of that version; "
            "check the network and `pip config list`"
        )
    lines = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if "ERROR" in line]
    return lines[-1].rstrip(".") if lines else "pip could not run; check `python -m pip --version`"


def _extract(tar: tarfile.TarFile, folder: str) -> None:
    """Unpack what stays inside `folder`; Debian 12's Python 3.11.2 has no filter for it yet."""
    if hasattr(tarfile, "data_filter"):
        tar.extractall(folder, filter="data")
        return
    for member in tar.getmembers():
        parts = Path(member.name).parts
        if not (member.isfile() or member.isdir()) or ".." in parts or member.name[:1] == "/":
            raise tarfile.TarError(f"{member.name} is a link, or would lie outside")
    tar.extractall(folder)


def unpack(archive: Path, target: Path) -> None:
    """Unpack into `target`, the archive's single top folder left out.

    Raises:
        TaskError: it is not a source distribution.
    """
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=target.parent) as temporary:
        try:
            if archive.name.endswith(".zip"):
                with zipfile.ZipFile(archive) as zipped:
                    zipped.extractall(temporary)
            else:
                with tarfile.open(archive) as tar:
                    _extract(tar, temporary)
        except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
            raise TaskError(f"{archive.name} cannot be unpacked: {error}.") from error
        tops = [path for path in Path(temporary).iterdir() if path.is_dir()]
        if len(tops) != 1:
            raise TaskError(
                f"{archive.name} is no source distribution: it has no single top folder."
            )
        for path in tops[0].iterdir():
            shutil.move(str(path), target / path.name)
