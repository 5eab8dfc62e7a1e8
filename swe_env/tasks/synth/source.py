"""The task source ``synth:``: a package's tasks, made once and kept in the cache."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import get_args

from swe_env.cache import cache_dir, digest
from swe_env.errors import TaskError
from swe_env.repos import head, pristine
from swe_env.tasks import rows
from swe_env.tasks.sources import options
from swe_env.tasks.statement import Detail
from swe_env.tasks.synth.generate import Progress, Settings, generate
from swe_env.tasks.synth.package import TOOLS, prepare
from swe_env.types import Source, Task

VERSION = 2
"""Raise when the same settings would give other tasks: kept ones are then made anew."""


def synth(argument: str, *, seed: int = 0, progress: Progress | None = None) -> list[Task]:
    """``synth:NAME==VERSION`` or ``synth:FOLDER``, with options after ``?``.

    Raises:
        TaskError: the package or an option is wrong, or the package gives no tasks.
    """
    what, _, text = argument.partition("?")
    settings = Settings(seed=seed, **options(text, Settings))
    if settings.detail not in get_args(Detail):
        known = ", ".join(get_args(Detail))
        raise TaskError(f"There is no detail {settings.detail!r}: use one of {known}.")
    return kept(_source(what), settings, progress=progress)


def kept(
    source: Source,
    settings: Settings,
    *,
    requirements: tuple[str, ...] | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> list[Task]:
    """A package's tasks from the cache, or made and kept there."""
    path = path_of(source, settings, requirements)
    if path.exists():
        return rows.read(path)
    package = prepare(source, requirements)
    tasks = generate(package, settings, workers=workers, progress=progress)
    rows.dump(tasks, path)
    return tasks


def path_of(source: Source, settings: Settings, requirements: tuple[str, ...] | None) -> Path:
    """Where those tasks are kept, made or not."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    key: list[object] = [VERSION, source, settings, requirements, python, TOOLS]
    if source.kind == "folder":
        key.append(head(pristine(source)))
    name = re.sub(r"\W+", "-", f"{source.location}-{source.version}").strip("-")[-40:]
    return cache_dir("tasks") / f"{name}-{digest(key)}.jsonl"


def _source(what: str) -> Source:
    if not what:
        raise TaskError("synth needs a package: `synth:NAME==VERSION` or `synth:FOLDER`.")
    name, pinned, version = what.partition("==")
    if pinned and version:
        return Source(kind="sdist", location=name, version=version)
    folder = Path(what).expanduser()
    if folder.is_dir():
        return Source(kind="folder", location=str(folder.resolve()))
    if re.fullmatch(r"[\w.-]+", what):
        raise TaskError(f"synth:{what} needs a version: write `synth:{what}==VERSION`.")
    raise TaskError(f"synth: {what!r} is neither NAME==VERSION nor a folder on this machine.")
