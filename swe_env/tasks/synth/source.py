"""The task source ``synth:``: a package's tasks, made once and kept in the cache."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

from swe_env.cache import cache_dir, digest
from swe_env.errors import TaskError
from swe_env.repos import head, pristine
from swe_env.repos.history import is_repository, resolve
from swe_env.tasks import rows
from swe_env.tasks.mutate.candidates import known_operator
from swe_env.tasks.sources import options
from swe_env.tasks.statement import Detail
from swe_env.tasks.synth.generate import generate
from swe_env.tasks.synth.mine import mine
from swe_env.tasks.synth.package import TOOLS, prepare
from swe_env.tasks.synth.settings import Progress, Settings
from swe_env.types import Source, Task

VERSION = 3
"""Raise when the same settings would give other tasks: kept ones are then made anew."""


def synth(argument: str, *, seed: int = 0, progress: Progress | None = None) -> list[Task]:
    """``synth:NAME==VERSION``, ``synth:FOLDER``, ``synth:OWNER/NAME`` or ``synth:GIT-URL``.

    A git repository may end in ``@REVISION``; options follow after ``?`` and are the fields of
    `Settings`.

    Raises:
        TaskError: the package or an option is wrong, or the package gives no tasks.
    """
    what, _, text = argument.partition("?")
    settings = Settings(seed=seed, **options(text, Settings))
    _check(settings)
    source, revision = _source(what)
    if settings.history:
        source, revision = _with_history(source, revision)
    return kept(source, settings, revision=revision, progress=progress)


def kept(
    source: Source,
    settings: Settings,
    *,
    requirements: tuple[str, ...] | None = None,
    revision: str = "",
    workers: int = 0,
    progress: Progress | None = None,
) -> list[Task]:
    """A package's tasks from the cache, or made and kept there."""
    path = path_of(source, settings, requirements, revision)
    if path.exists():
        return rows.read(path)
    if settings.history:
        tasks = mine(source, revision, settings, workers=workers, progress=progress)
    else:
        package = prepare(source, requirements, revision=revision)
        tasks = generate(package, settings, workers=workers, progress=progress)
    rows.dump(tasks, path)
    return tasks


def path_of(
    source: Source,
    settings: Settings,
    requirements: tuple[str, ...] | None,
    revision: str = "",
) -> Path:
    """Where those tasks are kept, made or not."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    key: list[object] = [VERSION, source, settings, requirements, python, TOOLS, revision]
    if source.kind == "folder":
        key.append(head(pristine(source)))
    name = re.sub(r"\W+", "-", f"{source.location}-{source.version}").strip("-")[-40:]
    return cache_dir("tasks") / f"{name}-{digest(key)}.jsonl"


def _check(settings: Settings) -> None:
    if settings.detail not in get_args(Detail):
        known = ", ".join(get_args(Detail))
        raise TaskError(f"There is no detail {settings.detail!r}: use one of {known}.")
    for name in ("limit", "bugs", "tests"):
        if getattr(settings, name) < 1:
            raise TaskError(f"The option {name} must be at least 1.")
    if settings.min_lines > settings.max_lines:
        raise TaskError(
            f"No function has {settings.min_lines} lines or more and {settings.max_lines} or "
            "fewer: swap min_lines and max_lines."
        )
    for name in filter(None, settings.operators.split(",")):
        known_operator(name)


def _source(what: str) -> tuple[Source, str]:
    """What to make tasks from, and the commit where that is a repository elsewhere."""
    if not what:
        raise TaskError(
            "synth needs a package: `synth:NAME==VERSION`, `synth:FOLDER`, `synth:OWNER/NAME` or "
            "`synth:GIT-URL`."
        )
    name, pinned, version = what.partition("==")
    if pinned and version:
        return Source(kind="sdist", location=name, version=version), ""
    folder = Path(what).expanduser()
    if folder.is_dir() and not (is_repository(folder) and not (folder / ".git").exists()):
        return Source(kind="folder", location=str(folder.resolve())), ""
    if re.fullmatch(r"[\w.-]+", what) and not folder.is_dir():
        raise TaskError(f"synth:{what} needs a version: write `synth:{what}==VERSION`.")
    location, revision = _parted(what.removeprefix("git+"))
    here = Path(location).expanduser()
    if here.is_dir():
        location = str(here.resolve())
    elif not re.search(r"://|^[\w.-]+@[\w.-]+:", location) and not re.fullmatch(
        r"[\w.-]+/[\w.-]+", location
    ):
        raise TaskError(
            f"synth: {what!r} is neither NAME==VERSION nor a folder of this machine, nor "
            "OWNER/NAME or the URL of a git repository."
        )
    return Source(kind="git", location=location), resolve(location, revision)


def _parted(what: str) -> tuple[str, str]:
    """A location and the revision after its last ``@`` (the one of ``git@host:`` is none)."""
    start = max(what.rfind("/"), what.rfind(":"))
    at = what.find("@", start + 1)
    return (what, "") if at < 0 else (what[:at], what[at + 1 :])


def _with_history(source: Source, revision: str) -> tuple[Source, str]:
    if source.kind == "folder" and (Path(source.location) / ".git").exists():
        return replace(source, kind="git"), resolve(source.location)
    if source.kind != "git":
        raise TaskError(
            f"{source.location} has no history to mine: give a git repository (OWNER/NAME, a URL "
            "or a clone on this machine)."
        )
    return source, revision
