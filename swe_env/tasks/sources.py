"""Where tasks come from: one registry of sources, one function that reads a spec."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from swe_env.errors import ConfigError, TaskError
from swe_env.plugins import Registry
from swe_env.tasks import rows
from swe_env.types import Task

Report = Callable[[str, int, int], None]
"""Progress: a label, how many are done, of how many (0: not known)."""


class TaskSource(Protocol):
    """Makes or reads tasks."""

    def __call__(self, argument: str, *, seed: int, progress: Report | None) -> list[Task]:
        """Tasks for what followed the source's name in the spec."""
        ...


sources: Registry[TaskSource] = Registry(
    "tasks",
    {
        "quickstart": "swe_env.tasks.quickstart:quickstart",
        "synth": "swe_env.tasks.synth.source:synth",
        "jsonl": "swe_env.tasks.sources:jsonl",
        **{
            name: f"swe_env.tasks.swebench.sources:{name}"
            for name in ("swebench", "r2e", "swegym", "swesmith", "swerebench")
        },
    },
)


def jsonl(argument: str, *, seed: int = 0, progress: Report | None = None) -> list[Task]:
    """``jsonl:PATH``: tasks of a file; see `swe_env.tasks.rows.read`."""
    del seed, progress
    if not argument:
        raise TaskError(f"jsonl needs a file: jsonl:PATH, which ends in {_endings()}.")
    return rows.read(argument)


def load(spec: str, *, seed: int = 0, progress: Report | None = None) -> list[Task]:
    """Tasks of a source.

    Args:
        spec: ``quickstart``, ``quickstart:train``, ``quickstart:heldout``, ``jsonl:PATH`` (or a
            path ending in .jsonl or .jsonl.zst), ``synth:NAME==VERSION``, ``synth:FOLDER`` (both
            with options: ``?limit=300&detail=symptom``), ``swebench:lite`` and its relatives
            (``r2e:``, ``swegym:``, ``swesmith:``, ``swerebench:``) with a data set's short name,
            a file or ``owner/name``, or a plug-in's name with its argument.
        seed: of sources that make tasks; the same seed gives the same tasks.
        progress: called while tasks are made.

    Raises:
        TaskError: no such source, or its tasks cannot be had.
    """
    name, _, argument = spec.partition(":")
    if spec.endswith(rows.SUFFIXES) and name not in sources.names():
        return rows.read(spec)
    try:
        source = sources.get(name)
    except ConfigError as error:
        raise TaskError(_of_a_family(spec) or str(error)) from error
    return source(argument, seed=seed, progress=progress)


def _of_a_family(spec: str) -> str:
    """What is missing in a spec that is only a file, folder or data set of rows, or empty."""
    rows_of = spec.endswith((".json", ".parquet")) or (spec.count("/") > 0 and ":" not in spec)
    if not rows_of and not (spec and Path(spec).exists()):
        return ""
    return (
        f"{spec!r} names no task source: rows of a benchmark need their family's name before "
        f"them, as in 'swebench:{spec}' (or r2e:, swegym:, swesmith:, swerebench:); only a file "
        f"that ends in {_endings()} stands alone."
    )


def _endings() -> str:
    return " or ".join(rows.SUFFIXES)


def find(tasks: Sequence[Task], instance_id: str) -> Task:
    """The task of that id.

    Raises:
        TaskError: there is none; says which is near.
    """
    for task in tasks:
        if task.instance_id == instance_id:
            return task
    near = difflib.get_close_matches(instance_id, [t.instance_id for t in tasks], n=1, cutoff=0.4)
    hint = f"Did you mean {near[0]!r}?" if near else "`swe tasks list` shows the ids."
    raise TaskError(f"There is no task {instance_id!r} among these {len(tasks)}. {hint}")


def options(text: str, settings: type[Any]) -> dict[str, Any]:
    """``limit=300&detail=line`` as keyword arguments of a settings dataclass.

    Raises:
        TaskError: an option is unknown or its value is of the wrong type.
    """
    known: dict[str, type] = {f.name: type(f.default) for f in fields(settings) if f.name != "seed"}
    found: dict[str, Any] = {}
    for part in filter(None, text.split("&")):
        name, _, value = part.partition("=")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(sorted(known))}."
            raise TaskError(f"Unknown option {name!r} of a task source. {hint}")
        kind = known[name]
        if kind is bool:
            found[name] = value.lower() not in ("0", "false", "no")
        elif kind is int:
            if not value.isdecimal():
                raise TaskError(f"The option {name} wants a whole number, not {value!r}.")
            found[name] = int(value)
        else:
            found[name] = value
    return found
