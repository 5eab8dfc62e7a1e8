"""Train and held-out tasks: no package, or no function, on both sides."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from swe_env.errors import ConfigError
from swe_env.types import Task

By = Literal["package", "function"]
TRAIN, HELDOUT = "train", "heldout"


def split(tasks: Sequence[Task], *, by: By, heldout: float = 0.2, seed: int = 0) -> list[Task]:
    """The tasks in their order, each with its side in ``metadata["split"]``.

    Tasks go over as whole groups, in an order that the seed and the groups' names give, until the
    share is reached. A task with bugs in several functions ties their groups together; a task that
    names no function (out of a history, or a data set's row) counts with its file, or its package.

    Args:
        tasks: of any source.
        by: ``package`` (a task's `repo`) or ``function``.
        heldout: share of the tasks to hold out, in (0, 1).
        seed: another gives other sides.

    Raises:
        ConfigError: the share is out of range, or there is but one group.
    """
    if by not in get_args(By):
        raise ConfigError(f"Tasks are split by {' or '.join(get_args(By))}, not by {by!r}.")
    if not 0 < heldout < 1:
        raise ConfigError(f"The held-out share must lie between 0 and 1; it is {heldout:g}.")
    groups = _groups(tasks, by)
    if len(groups) < 2:
        raise ConfigError(
            f"These {len(tasks)} tasks are of one {by}: they cannot be split by {by}."
        )
    order = sorted(groups, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    out: set[str] = set()
    for name in order[:-1]:
        if len(out) >= heldout * len(tasks):
            break
        out |= groups[name]
    sides = [HELDOUT if task.instance_id in out else TRAIN for task in tasks]
    return [
        replace(task, metadata={**task.metadata, "split": side})
        for task, side in zip(tasks, sides, strict=True)
    ]


def _groups(tasks: Sequence[Task], by: By) -> dict[str, set[str]]:
    """Name of a group → ids of its tasks; groups that share a task are one."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        leader.setdefault(name, name)
        while leader[name] != name:
            name = leader[name]
        return name

    for task in tasks:
        names = _names(task, by)
        for name in names[1:]:
            first, second = sorted((find(names[0]), find(name)))
            leader[second] = first
    groups: dict[str, set[str]] = defaultdict(set)
    for task in tasks:
        groups[find(_names(task, by)[0])].add(task.instance_id)
    return dict(groups)


def _names(task: Task, by: By) -> list[str]:
    if by == "package":
        return [task.repo]
    bugs = task.metadata.get("bugs") or [task.metadata]
    names = [
        ":".join(str(bug[key]) for key in ("path", "function") if bug.get(key)) for bug in bugs
    ]
    return [f"{task.repo}:{name}" for name in names]
