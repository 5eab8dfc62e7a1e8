"""`read`: files and folders of other agents' trajectories, one after another."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from swe_env.errors import ConfigError
from swe_env.replay.imports import mini_swe_agent, r2e, swe_agent
from swe_env.replay.trajectory import Trajectory

log = logging.getLogger(__name__)

FORMATS = ("swe-agent", "mini-swe-agent", "r2e")
"""What `read` knows; which one a file is shows in it."""
_SUFFIXES = (".traj.json", ".traj", ".jsonl", ".json")


@dataclass(slots=True)
class Imported:
    """What `read` met."""

    files: int = 0
    trajectories: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)
    """What was no trajectory, one sentence each: file, line and why."""


def read(
    path: str | os.PathLike[str],
    *,
    kind: str = "",
    verdicts: Mapping[str, bool] | None = None,
    report: Imported | None = None,
) -> Iterator[Trajectory]:
    """Trajectories of a file, or of a folder's ``.traj``, ``.traj.json`` and ``.jsonl`` files.

    Attempts at one task are numbered as they come. What is no trajectory is logged, noted in
    `report` and passed over.

    Args:
        path: a file or folder.
        kind: one of `FORMATS`; found out from the file when empty.
        verdicts: instance id → resolved, for agents that don't grade themselves.
        report: filled while the trajectories are read.

    Raises:
        ConfigError: there is no such path or format.
    """
    if kind and kind not in FORMATS:
        raise ConfigError(f"There is no import format {kind!r}: take one of {', '.join(FORMATS)}.")
    root = Path(path)
    if not root.exists():
        raise ConfigError(f"There is nothing at {root}: check the path.")
    report = report if report is not None else Imported()
    attempts: Counter[str] = Counter()
    for file in [root] if root.is_file() else _files(root):
        report.files += 1
        for place, text in _documents(file):
            try:
                data, found = _decode(text, kind)
                name = _instance_id(file, data)
                resolved = (verdicts or {}).get(name)
                made = _CONVERT[found](
                    data, instance_id=name, attempt=attempts[name], resolved=resolved
                )
            except (msgspec.MsgspecError, ValueError, UnicodeError) as error:
                report.skipped.append(f"{place}: {error}")
                log.warning("Skipped %s: %s.", place, error)
                continue
            attempts[name] += 1
            report.trajectories += 1
            report.formats[found] += 1
            yield made


def read_verdicts(path: str | os.PathLike[str]) -> dict[str, bool]:
    """Verdicts from the report that SWE-bench's harness writes (``resolved_ids``, …).

    Raises:
        ConfigError: the file is no such report.
    """
    try:
        data = msgspec.json.decode(Path(path).read_bytes(), type=_Report)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path} is no report of SWE-bench's harness: {error}.") from error
    return dict.fromkeys(data.unresolved_ids, False) | dict.fromkeys(data.resolved_ids, True)


class _Report(msgspec.Struct):
    resolved_ids: list[str]
    unresolved_ids: list[str] = []


_CONVERT: dict[str, Callable[..., Trajectory]] = {
    "swe-agent": swe_agent.convert,
    "mini-swe-agent": mini_swe_agent.convert,
    "r2e": r2e.convert,
}
_TYPES: dict[str, Any] = {
    "swe-agent": swe_agent.SweAgent,
    "mini-swe-agent": mini_swe_agent.Mini,
    "r2e": r2e.R2E,
}
_MARKS = {"trajectory_steps": "r2e", "messages": "mini-swe-agent", "trajectory": "swe-agent"}


def _decode(text: bytes, kind: str) -> tuple[Any, str]:
    data = msgspec.json.decode(text)
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    kind = kind or next((name for mark, name in _MARKS.items() if mark in data), "")
    if not kind:
        raise ValueError(f"it is of none of the formats {', '.join(FORMATS)}")
    return msgspec.convert(data, _TYPES[kind], strict=False), kind


def _files(root: Path) -> list[Path]:
    found = [p for p in root.rglob("*") if p.is_file() and p.name.endswith(_SUFFIXES[:3])]
    return sorted(found)


def _documents(file: Path) -> Iterator[tuple[str, bytes]]:
    if file.suffix != ".jsonl":
        yield str(file), file.read_bytes()
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{file}:{number}", line


def _instance_id(file: Path, data: Any) -> str:
    if isinstance(data, r2e.R2E):
        return r2e.instance_of(data)
    name: str = getattr(data, "instance_id", "")
    if name:
        return name
    for suffix in _SUFFIXES:
        if file.name.endswith(suffix):
            return file.name.removesuffix(suffix)
    return file.stem
