"""Python environments of recipes: built once with uv (else venv and pip), cached, relocatable."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from swe_env.cache import build_once, cache_dir, digest
from swe_env.errors import RecipeError
from swe_env.types import Recipe

_LAYOUT = 2
"""Raise when the way an environment is made changes."""
_INSTALL_LAYOUT = 2
"""Raise when the way an install command is run changes."""
_LEFT = "checkout"
"""Folder of an environment that holds what its install command left in the checkout."""
_ROOTS = "pythonpath.txt"
"""File of an environment: the checkout's folders that its editable installation pointed to."""
_BUILD_JUNK = {"__pycache__", ".git", "build", ".eggs"}


@functools.cache
def interpreter(version: str) -> Path:
    """A base interpreter (no virtual environment) of that "major.minor" on this machine.

    Raises:
        RecipeError: there is none; says how to get it.
    """
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        own = Path(sys.base_prefix, "bin", f"python{version}")
        if own.exists():
            return own.resolve()
    candidates = [shutil.which(f"python{version}")]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    candidates += [str(path) for path in sorted(pyenv.glob(f"{version}.*/bin/python{version}"))]
    if importlib.util.find_spec("uv"):
        command = [sys.executable, "-m", "uv", "python", "find", "--system"]
        done = _run([*command, "--no-python-downloads", version])
        candidates.append(done.stdout.strip() if done.returncode == 0 else None)
    # A shim of pyenv or asdf is no interpreter: ask each what it really runs.
    asked = "import sys; print('%d.%d' % sys.version_info[:2], sys.base_prefix)"
    for candidate in filter(None, candidates):
        done = _run([candidate, "-c", asked])
        said, _, base = done.stdout.strip().partition(" ")
        if done.returncode == 0 and said == version:
            return Path(base, "bin", f"python{version}").resolve()
    raise RecipeError(
        f"Python {version} is not on this machine: get it with `uv python install {version}` "
        f"(or pyenv, or the system's packages)."
    )


def prefix(python: Path) -> Path:
    """The folder an interpreter is installed under: what a sandbox must also see."""
    return python.resolve().parent.parent


def environment(recipe: Recipe, checkout: Path | None = None) -> Path:
    """The recipe's environment, from the cache or built now.

    Args:
        recipe: Python version and pins.
        checkout: where `recipe.install` runs, in a copy; needed only when there is one.

    Raises:
        RecipeError: it cannot be built; carries what the installer said.
    """
    python = interpreter(recipe.python)
    own = f"{checkout} {_INSTALL_LAYOUT}" if recipe.install else ""
    key = digest([_LAYOUT, str(python), recipe.requirements, recipe.install, own])
    target = cache_dir("envs") / f"py{recipe.python}-{key}"
    return build_once(target, lambda folder: _build(recipe, python, checkout, folder))


def left_in_checkout(folder: Path) -> Path | None:
    """Files that the recipe's install command made in the checkout, or None where it made none.

    Generated modules (a version file), extension modules, metadata: the checkout needs them to
    run, and its repository does not have them.
    """
    return folder / _LEFT if (folder / _LEFT).is_dir() else None


def import_roots(folder: Path) -> list[str]:
    """Folders of the checkout, relative to it, that the install command made importable."""
    roots = folder / _ROOTS
    return roots.read_text("utf-8").splitlines() if roots.exists() else []


def installed(folder: Path) -> dict[str, str]:
    """Distributions of an environment: normalised name → version."""
    found = {}
    for info in folder.glob("lib/python*/site-packages/*.dist-info"):
        name, _, version = info.name.removesuffix(".dist-info").partition("-")
        found[re.sub(r"[-_.]+", "-", name).lower()] = version
    return found


def _run(
    command: list[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    return subprocess.run(
        command, capture_output=True, text=True, env={**kept, **(env or {})}, cwd=cwd, check=False
    )


def _build(recipe: Recipe, python: Path, checkout: Path | None, folder: Path) -> None:
    problem = _with_uv(recipe, python, folder)
    if problem:
        shutil.rmtree(folder)
        folder.mkdir()
        fallback = _with_pip(recipe, python, folder)
        if fallback:
            wanted = ", ".join(recipe.requirements) or "nothing"
            raise RecipeError(
                f"The Python {recipe.python} environment ({wanted}) could not be built: {fallback}."
            )
    if recipe.install:
        _install(recipe, checkout, folder)


def _with_uv(recipe: Recipe, python: Path, folder: Path) -> str:
    """Build with uv; returns why that failed, or nothing."""
    if not importlib.util.find_spec("uv"):
        return "uv is not installed"
    uv = [sys.executable, "-m", "uv"]
    settings = _pip_settings()
    made = _run([*uv, "venv", "-q", "--relocatable", "--allow-existing", "--no-project",
                 "--python", str(python), str(folder)])  # fmt: skip
    if made.returncode:
        return _last(made)
    if recipe.requirements:
        inside = ["--python", str(folder / "bin" / "python"), *recipe.requirements]
        # Compiled now, as pip does: sandboxes see the environment read-only, and would compile
        # pytest anew for every run.
        compiled = ["pip", "install", "-q", "--compile-bytecode"]
        done = _run([*uv, *compiled, *inside], env=settings)
        if done.returncode:
            return _last(done)
    return ""


def _with_pip(recipe: Recipe, python: Path, folder: Path) -> str:
    made = _run([str(python), "-m", "venv", str(folder)])
    if made.returncode:
        return _last(made)
    if recipe.requirements:
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q"]
        done = _run([*pip, *recipe.requirements])
        if done.returncode:
            return _last(done)
    for script in (folder / "bin").iterdir():
        _relocate(script, folder)
    return ""


def _relocate(script: Path, folder: Path) -> None:
    """Make a pip-written console script find its interpreter beside itself, as uv's do."""
    if script.is_symlink() or not script.is_file():
        return
    data = script.read_bytes()
    first = f"#!{folder}/bin/python".encode()
    if not data.startswith(first):
        return
    body = data.split(b"\n", 1)[1]
    shim = b'#!/bin/sh\n\'\'\'exec\' "$(dirname -- "$(realpath -- "$0")")"/python'
    shim += b" \"$0\" \"$@\"\n' '''\n"
    script.write_bytes(shim + body)


@functools.cache
def _pip_settings() -> dict[str, str]:
    """The user's pip index settings as uv's variables; uv does not read pip's files."""
    if not importlib.util.find_spec("pip"):
        return {}
    listed = _run([sys.executable, "-m", "pip", "config", "list"]).stdout
    found: dict[str, str] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        found[name.rsplit(".", 1)[-1]] = value.strip("'\"").replace("\\n", " ").strip()
    names = {
        "index-url": "UV_DEFAULT_INDEX",
        "extra-index-url": "UV_INDEX",
        "find-links": "UV_FIND_LINKS",
        "cert": "SSL_CERT_FILE",
    }
    settings = {names[key]: value for key, value in found.items() if key in names}
    # pip takes the best version of all indexes; without this uv stops at the first that has any.
    settings["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if found.get("no-index", "").lower() in ("1", "true", "yes"):
        settings["UV_NO_INDEX"] = "1"
    return {key: value for key, value in settings.items() if key not in os.environ}


def _install(recipe: Recipe, checkout: Path | None, folder: Path) -> None:
    if checkout is None:
        raise RecipeError("A recipe with an install command needs a checkout to run it in.")
    with tempfile.TemporaryDirectory(prefix="swe-env-install-") as temporary:
        work = Path(temporary, "checkout")
        shutil.copytree(checkout, work, symlinks=True)
        path = f"{folder / 'bin'}:{os.environ.get('PATH', os.defpath)}:{_uv_folder()}"
        variables = {"PATH": path, "VIRTUAL_ENV": str(folder), **_pip_settings()}
        done = _run(["/bin/sh", "-c", recipe.install], env=variables, cwd=work)
        if done.returncode:
            raise RecipeError(f"The install command {recipe.install!r} failed: {_last(done)}.")
        _keep_new(checkout, work, folder / _LEFT)
        _forget(folder, work)


def _uv_folder() -> str:
    """Where the uv that comes with us lies, for install commands that call it."""
    if not importlib.util.find_spec("uv"):
        return ""
    from uv import find_uv_bin

    return str(Path(find_uv_bin()).parent)


def _keep_new(checkout: Path, work: Path, kept: Path) -> None:
    """Copy what an install command made in its copy of the checkout; tracked files stay theirs."""
    for top, names, files in os.walk(work):
        names[:] = [name for name in names if name not in _BUILD_JUNK]
        for name in files:
            place = Path(top, name).relative_to(work)
            if not os.path.lexists(checkout / place):
                (kept / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(work / place, kept / place, follow_symlinks=False)


def _forget(folder: Path, work: Path) -> None:
    """Drop an editable installation's pointers to the copy of the checkout it was made in.

    The metadata stay; the code is found on the path, in each sandbox's own checkout.
    """
    inside = re.compile(re.escape(str(work)) + r"((?:/[^'\"\n/]+)*)")
    roots: set[str] = set()
    for packages in folder.glob("lib/python*/site-packages"):
        finders = [*packages.glob("__editable__*.py")]
        for pointer in (*packages.glob("*.pth"), *packages.glob("*.egg-link"), *finders):
            found = inside.findall(pointer.read_text("utf-8", "replace"))
            # A finder maps packages to their own folders, the other files name folders of them.
            up = 1 if pointer in finders else 0
            parts = [path.strip("/").split("/") for path in found]
            roots |= {"/".join(part[: len(part) - up]) or "." for part in parts}
            if found or pointer.name.startswith("__editable__"):
                pointer.unlink()
        for origin in packages.glob("*.dist-info/direct_url.json"):
            if str(work) in origin.read_text("utf-8", "replace"):
                origin.unlink()
    (folder / _ROOTS).write_text("".join(f"{root}\n" for root in sorted(roots)), "utf-8")


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("[notice]", "hint:", "WARNING"))]
    said = telling[-1].removeprefix("ERROR: ").rstrip(".") if telling else ""
    return said[:300] or f"exit code {done.returncode}"
