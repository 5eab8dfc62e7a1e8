"""`write`: a buffer or view as a file that another tool reads."""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from swe_env.errors import ConfigError, ReplayError
from swe_env.replay.export.atif import atif
from swe_env.replay.export.llamafactory import (
    dataset_info,
    llamafactory_kto,
    llamafactory_preference,
    llamafactory_sft,
)
from swe_env.replay.export.minari import write_minari
from swe_env.replay.export.pairing import pairs, usable
from swe_env.replay.export.predictions import preds
from swe_env.replay.export.trl import trl_kto, trl_preference, trl_sft
from swe_env.replay.trajectory import Trajectory
from swe_env.replay.view import Records

_PAIRS: dict[str, Callable[[Trajectory, Trajectory], dict[str, Any]]] = {
    "trl-preference": trl_preference,
    "llamafactory-preference": llamafactory_preference,
}
_LABELLED: dict[str, Callable[[Trajectory], dict[str, Any]]] = {
    "trl-kto": trl_kto,
    "llamafactory-kto": llamafactory_kto,
}
_GOOD: dict[str, Callable[[Trajectory], dict[str, Any]]] = {
    "trl-sft": trl_sft,
    "llamafactory-sft": llamafactory_sft,
}
FORMATS = (*_PAIRS, *_LABELLED, *_GOOD, "atif", "minari", "preds")
"""What `write` knows."""


@dataclass(slots=True)
class Written:
    """What `write` did."""

    out: str
    rows: int = 0
    records: int = 0
    """Trajectories looked at."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Why → how many: trajectories, or pairs where the format has those."""


def write(
    records: Records,
    kind: str,
    out: str | os.PathLike[str],
    *,
    per_task: int | None = None,
    seed: int = 0,
) -> Written:
    """Export trajectories.

    Preference and KTO rows come from trajectories that the agent finished and that have a verdict,
    SFT rows from those of them that resolved their task, predictions from those that did not fail
    (a failure is the machinery's); the other formats take every one.

    Args:
        records: a buffer, or a view of what is wanted.
        kind: one of `FORMATS`.
        out: the JSONL file to write; a folder for ``atif``; a dataset's name for ``minari``.
        per_task: pairs a task (1 unless given), KTO rows a task and label, SFT rows a task.
        seed: which of a task's trajectories are taken.

    Raises:
        ConfigError: there is no such format, or nothing to write.
        ReplayError: the file could not be written.
    """
    if kind not in FORMATS:
        raise ConfigError(f"There is no export format {kind!r}: take one of {', '.join(FORMATS)}.")
    done = Written(os.fspath(out), records=len(records))
    if kind == "minari":
        done.rows = write_minari(records, os.fspath(out))
        if done.records > done.rows:
            done.left_out["no agent step, or damaged"] = done.records - done.rows
        return done
    try:
        if kind == "atif":
            _write_atif(records, Path(out), done)
        else:
            _write_lines(_rows(records, kind, per_task, seed, done), Path(out), done)
            if kind.startswith("llamafactory-"):
                _describe(kind, Path(out))
    except OSError as error:
        raise ReplayError(f"{done.out} could not be written: {error.strerror}.") from error
    return done


def _rows(
    records: Records, kind: str, per_task: int | None, seed: int, done: Written
) -> Iterator[dict[str, Any]]:
    if kind == "preds":
        sound = records.filter(failure="")
        _count(done, "failed", len(records) - len(sound))
        yield from preds(sound)
        return
    fit = usable(records)
    _count(done, "unfinished, failed or without verdict", len(records) - len(fit))
    if kind in _PAIRS:
        build = _PAIRS[kind]
        for chosen, rejected in pairs(fit, per_task=per_task or 1, seed=seed):
            try:
                yield build(chosen, rejected)
            except ConfigError:
                _count(done, "pairs that differ in no single reply", 1)
        return
    if kind in _GOOD:
        resolved = fit.filter(resolved=True)
        _count(done, "unresolved", len(fit) - len(resolved))
        fit = resolved
    one = _LABELLED.get(kind) or _GOOD[kind]
    for _, task in sorted(fit.group_by_task().items()):
        for label in (True, False):
            group = task.filter(resolved=label)
            if per_task is None or len(group) <= per_task:
                chosen_ones: Iterable[Trajectory] = group
            else:
                _count(done, "over the limit a task", len(group) - per_task)
                chosen_ones = islice(group.shuffled(seed), per_task)
            yield from map(one, chosen_ones)


def _count(done: Written, reason: str, number: int) -> None:
    if number:
        done.left_out[reason] = done.left_out.get(reason, 0) + number


def _write_lines(rows: Iterable[dict[str, Any]], out: Path, done: Written) -> None:
    """All rows or no file: who reads it meanwhile sees the old one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            for row in rows:
                file.write(msgspec.json.encode(row) + b"\n")
                done.rows += 1
        if not done.rows:
            why = ", ".join(f"{number} {reason}" for reason, number in done.left_out.items())
            raise ConfigError(f"There is nothing to export ({why or 'no trajectory'}).")
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def _write_atif(records: Records, out: Path, done: Written) -> None:
    """One document a file, as Harbor keeps them; named by task, attempt and id."""
    out.mkdir(parents=True, exist_ok=True)
    names: Counter[str] = Counter()
    for trajectory in records:
        if not trajectory.steps:
            _count(done, "no step", 1)
            continue
        safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in trajectory.instance_id)
        name = f"{safe}-{trajectory.attempt}-{trajectory.trajectory_id[:8]}"
        names[name] += 1
        (out / f"{name}.json").write_bytes(msgspec.json.encode(atif(trajectory)))
    done.rows = len(names)
    _count(done, "doubled", names.total() - len(names))


def _describe(kind: str, out: Path) -> None:
    """The file's entry in the folder's ``dataset_info.json``, beside those that are there."""
    path = out.with_name("dataset_info.json")
    known = msgspec.json.decode(path.read_bytes(), type=dict[str, Any]) if path.exists() else {}
    entry = dataset_info(kind.partition("-")[2], out.stem, out.name)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(known | entry)) + b"\n")
