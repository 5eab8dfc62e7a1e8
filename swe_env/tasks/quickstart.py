"""The task source ``quickstart``: real packages, pinned by hash, made into tasks on first use."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from swe_env.errors import TaskError
from swe_env.tasks.synth.package import prepare
from swe_env.tasks.synth.settings import Progress, Settings
from swe_env.tasks.synth.source import kept, path_of
from swe_env.types import Source, Task

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Package:
    name: str
    version: str
    sha256: str
    split: str
    tasks: int
    requirements: tuple[str, ...] = ()
    ignored_tests: str = ""
    """Slow test files: start programs, or try every character of Unicode."""


PACKAGES = (
    _Package(
        "boltons", "26.2.0", "d39cfd15c1a1c3bd4d705c82252fa9edb8e4f5e8cc039f8e39afac7b1b47e92c",
        "train", 22,
    ),
    _Package(
        "toolz", "1.2.0", "9667a038e9d6ecba37995e26cb2f59ec6420b6ad8dd9677de59db9b956b08490",
        "train", 16,
    ),
    _Package(
        "parse", "1.22.4", "706d458feed5a81b02768d3156e8070baf6cee7d150a3a3c0cd43101a875c3b5",
        "train", 12,
    ),
    _Package(
        "inflection", "0.5.1", "1a29730d366e996aaacffb2f1f1cb9593dc38e2ddd30c91250c6dde09ea9b417",
        "heldout", 12,
    ),
    _Package(
        "python-slugify", "9.2.0",
        "cee32948083476013804de1667724fb1362dacb71e47b1d5d92adf8db6ee3298",
        "heldout", 12, ("text-unidecode==1.3",),
        "tests/test_release.py,tests/test_modern_combining_marks.py",
    ),
)  # fmt: skip
"""Split by package, so that nothing of a held-out package is ever trained on."""

problems: list[str] = []
"""One sentence for each package that the last `quickstart` call could not use."""


def quickstart(
    argument: str = "", *, seed: int = 0, progress: Progress | None = None, workers: int = 0
) -> list[Task]:
    """``quickstart``, ``quickstart:train``, ``quickstart:heldout``.

    Single-line bugs in functions of 4 to 25 lines, with statements that quote the suspect line.

    Args:
        argument: split; empty for both.
        seed: chooses the bugs.
        progress: called as tasks are made.
        workers: processes that run tests; 0 for one per core.

    Raises:
        TaskError: unknown split, or no package can be had (see `problems` for each).
    """
    splits = sorted({package.split for package in PACKAGES})
    if argument not in ("", *splits):
        raise TaskError(f"quickstart has no split {argument!r}: use one of {', '.join(splits)}.")
    chosen = [package for package in PACKAGES if argument in ("", package.split)]
    problems.clear()
    tasks: list[Task] = []
    # The next package is downloaded and its environment built while tests of this one run.
    with ThreadPoolExecutor(1) as ahead:
        ready = [ahead.submit(_prepare, package, seed) for package in chosen]
        for package, future in zip(chosen, ready, strict=True):
            try:
                tasks += _make(package, future, seed, workers, progress)
            except TaskError as error:
                problems.append(f"quickstart goes on without {package.name}: {error}")
                _log.warning("%s", problems[-1])
    if not tasks:
        raise TaskError(f"quickstart has no package to make tasks from. {problems[0]}")
    return tasks


def _settings(package: _Package, seed: int) -> Settings:
    return Settings(
        seed=seed,
        limit=package.tasks,
        detail="line",
        min_lines=4,
        max_lines=25,
        single_line=True,
        per_function=3,
        per_operator=max(2, package.tasks // 5),
        tests=5,
        ignored_tests=package.ignored_tests,
        alike=True,
    )


def _source(package: _Package) -> Source:
    return Source(
        kind="sdist", location=package.name, version=package.version, sha256=package.sha256
    )


def _prepare(package: _Package, seed: int) -> None:
    if path_of(_source(package), _settings(package, seed), package.requirements).exists():
        return
    prepare(_source(package), package.requirements)


def _make(
    package: _Package, ready: Future[None], seed: int, workers: int, progress: Progress | None
) -> list[Task]:
    ready.result()
    tasks = kept(
        _source(package),
        _settings(package, seed),
        requirements=package.requirements,
        workers=workers,
        progress=progress,
    )
    return [replace(task, metadata={**task.metadata, "split": package.split}) for task in tasks]
