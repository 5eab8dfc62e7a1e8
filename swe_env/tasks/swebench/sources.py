"""The task sources ``swebench:``, ``r2e:``, ``swegym:``, ``swesmith:`` and ``swerebench:``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from swe_env.errors import TaskError, UnsupportedTask
from swe_env.tasks.sources import Report, options
from swe_env.tasks.swebench.families import FAMILIES, Prefer
from swe_env.tasks.swebench.fields import Fields
from swe_env.tasks.swebench.r2e import r2e as r2e_row
from swe_env.tasks.swebench.reader import read_rows
from swe_env.types import Task

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of a spec: ``swebench:lite?environment=image&limit=10``."""

    environment: str = "auto"
    """``auto``, ``recipe`` or ``image``; see `swe_env.tasks.swebench.families.Prefer`."""
    split: str = ""
    """Split of a data set; the benchmark's own when empty."""
    limit: int = 0
    """Most tasks; 0 for all."""


@dataclass(frozen=True, slots=True)
class _Hub:
    """Short names of a family's data sets, and the split that is meant."""

    names: dict[str, str]
    split: str


_HUBS = {
    "swebench": _Hub(
        {
            "verified": "SWE-bench/SWE-bench_Verified",
            "lite": "SWE-bench/SWE-bench_Lite",
            "full": "SWE-bench/SWE-bench",
        },
        "test",
    ),
    "r2e": _Hub(
        {
            "full": "R2E-Gym/R2E-Gym-V1",
            "subset": "R2E-Gym/R2E-Gym-Subset",
            "lite": "R2E-Gym/R2E-Gym-Lite",
        },
        "train",
    ),
    "swegym": _Hub({"full": "SWE-Gym/SWE-Gym", "lite": "SWE-Gym/SWE-Gym-Lite"}, "train"),
    "swesmith": _Hub({"full": "SWE-bench/SWE-smith"}, "train"),
    "swerebench": _Hub(
        {
            "full": "nebius/SWE-rebench",
            "leaderboard": "nebius/SWE-rebench-leaderboard",
            "v2": "nebius/SWE-rebench-V2",
        },
        "test",
    ),
}
_CONVERT: dict[str, Callable[[Fields, Prefer], Task]] = {**FAMILIES, "r2e": r2e_row}


def read(family: str, argument: str, progress: Report | None = None) -> list[Task]:
    """Tasks of one family.

    Args:
        family: a source's name.
        argument: a short name of a data set, a path or ``owner/name``, with options after ``?``.
        progress: called as rows are read.

    Raises:
        TaskError: nothing is there, an option is unknown, or a row is malformed (names the row
            and the field). Rows in languages that no runner here knows are left out, with a
            warning that says how many.
    """
    hub = _HUBS[family]
    location, _, text = argument.partition("?")
    settings = Settings(**options(text, Settings))
    if settings.environment not in ("auto", "recipe", "image"):
        raise TaskError(
            f"The option environment is auto, recipe or image, not {settings.environment!r}."
        )
    if not location:
        names = ", ".join(f"{family}:{name}" for name in hub.names)
        raise TaskError(f"{family} needs a data set: {names}, a file or owner/name.")
    tasks: dict[str, Task] = {}
    left_out: list[str] = []
    place = hub.names.get(location, location)
    split = settings.split or hub.split
    for row in read_rows(place, split=split):
        fields = Fields(row.values, row.where)
        try:
            task = _CONVERT[family](fields, cast("Prefer", settings.environment))
        except UnsupportedTask as error:
            left_out.append(str(error))
            continue
        if task.instance_id in tasks:
            raise TaskError(f"{row.where}: {task.instance_id!r} is there twice.")
        tasks[task.instance_id] = task
        if progress is not None and len(tasks) % 100 == 0:
            progress(f"{family}:{location}", len(tasks), 0)
        if settings.limit and len(tasks) >= settings.limit:
            break
    if left_out:
        _log.warning("%d rows of %s are left out. %s", len(left_out), place, left_out[0])
    if not tasks:
        raise TaskError(" ".join([f"{place} holds no task.", *left_out[:1]]))
    return list(tasks.values())


def swebench(argument: str, *, seed: int = 0, progress: Report | None = None) -> list[Task]:
    """``swebench:verified``, ``lite``, ``full``, a file of rows, or a data set on the hub."""
    del seed
    return read("swebench", argument, progress)


def r2e(argument: str, *, seed: int = 0, progress: Report | None = None) -> list[Task]:
    """``r2e:full``, ``subset``, ``lite``, a file of rows, or a data set on the hub."""
    del seed
    return read("r2e", argument, progress)


def swegym(argument: str, *, seed: int = 0, progress: Report | None = None) -> list[Task]:
    """``swegym:full``, ``lite``, a file of rows, or a data set on the hub."""
    del seed
    return read("swegym", argument, progress)


def swesmith(argument: str, *, seed: int = 0, progress: Report | None = None) -> list[Task]:
    """``swesmith:full``, a file of rows, or a data set on the hub."""
    del seed
    return read("swesmith", argument, progress)


def swerebench(argument: str, *, seed: int = 0, progress: Report | None = None) -> list[Task]:
    """``swerebench:full``, ``leaderboard``, ``v2``, a file of rows, or a data set on the hub."""
    del seed
    return read("swerebench", argument, progress)
