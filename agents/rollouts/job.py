"""A job's folder: ``<instance_id>/<attempt>/`` with what came of each attempt, and ``config.toml``.

The trajectory is written last and by rename, so an attempt whose trajectory is there is finished.
"""

from __future__ import annotations

import json
import logging
import os
import tomllib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import zstandard
from filelock import FileLock

from agents.rollouts.report import AttemptResult
from swe_env.errors import ConfigError, ReplayError
from swe_env.replay.trajectory import Trajectory

log = logging.getLogger(__name__)

TRAJECTORY = "trajectory.json.zst"
REPORT = "report.json"
IDENTITY = ".id"


class JobFolder:
    """``runs/<job>/`` on disk."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser().absolute()
        self.path.mkdir(parents=True, exist_ok=True)

    def attempt(self, instance_id: str, attempt: int) -> Path:
        """The folder of one attempt (it may not exist yet)."""
        name = quote(instance_id, safe="@+=,:[] ")
        if name.startswith("."):
            name = f"%2E{name[1:]}"
        return self.path / name / str(attempt)

    def identity(self) -> str:
        """A name that no other job's folder has: tells whether a path leads here elsewhere."""
        file = self.path / IDENTITY
        with FileLock(self.path / ".config.lock"):
            if not file.exists():
                _replace(file, uuid.uuid4().hex.encode(), durable=True)
        return file.read_text()

    def configure(self, config: Mapping[str, Any], *, growing: frozenset[str]) -> None:
        """Write ``config.toml``, or check that it says the same.

        Args:
            config: the resolved configuration, plain data.
            growing: top-level keys whose value may differ (the file keeps the newest).

        Raises:
            ConfigError: the folder belongs to a job with another configuration; names what differs.
        """
        file, text = self.path / "config.toml", to_toml(config)
        with FileLock(self.path / ".config.lock"):
            if file.exists():
                old, new = tomllib.loads(file.read_text()), tomllib.loads(text)
                keys = _differences(old, new)
                if wrong := [key for key in keys if key.partition(".")[0] not in growing]:
                    raise ConfigError(
                        f"{self.path} holds a job with another configuration ({', '.join(wrong)} "
                        "differ): use the same settings to continue it, or another --out folder."
                    )
            _replace(file, text.encode(), durable=True)

    def result(self, instance_id: str, attempt: int) -> AttemptResult | None:
        """The result of a finished attempt, or None; so too where its report is damaged."""
        folder = self.attempt(instance_id, attempt)
        if not (folder / TRAJECTORY).exists():
            return None
        try:
            document = msgspec.json.decode((folder / REPORT).read_bytes(), type=_Report)
        except (FileNotFoundError, msgspec.MsgspecError) as error:
            log.warning("%s is damaged (%s).", folder / REPORT, error)
            return None
        return document.result

    def finished(self, instance_id: str, attempt: int) -> Trajectory | None:
        """The trajectory of a finished attempt, or None; the caller holds the attempt's lease.

        A damaged one (a power cut) is set aside, and the attempt is not finished; a damaged report
        is written anew.

        Raises:
            ReplayError: the trajectory cannot be read, or is of another version.
        """
        file = self.attempt(instance_id, attempt) / TRAJECTORY
        if not file.exists():
            return None
        try:
            trajectory = load_trajectory(file)
        except ReplayError as error:
            if not isinstance(error.__cause__, zstandard.ZstdError | msgspec.MsgspecError):
                raise
            aside = file.with_name(f"{file.name}.damaged")
            file.replace(aside)
            log.error("%s It is now %s, and the attempt is done again.", error, aside.name)
            return None
        if self.result(instance_id, attempt) is None:
            _replace(file.with_name(REPORT), _report(trajectory))
        return trajectory

    def trajectory(self, instance_id: str, attempt: int) -> Trajectory:
        """The trajectory of a finished attempt.

        Raises:
            ReplayError: it cannot be read.
        """
        return load_trajectory(self.attempt(instance_id, attempt) / TRAJECTORY)

    def save(self, trajectory: Trajectory, lines: str) -> AttemptResult:
        """Write everything about one attempt; finished when this returns.

        Raises:
            ReplayError: the trajectory would not read back; what was there before is left.
        """
        body = _encoded(trajectory)
        folder = self.attempt(trajectory.instance_id, trajectory.attempt)
        folder.mkdir(parents=True, exist_ok=True)
        # A trial that the machinery failed may have left one: no report may stand beside it.
        (folder / TRAJECTORY).unlink(missing_ok=True)
        (folder / "log").write_text(lines)
        (folder / "patch.diff").write_text(trajectory.patch, newline="")
        _replace(folder / REPORT, _report(trajectory))
        _replace(folder / TRAJECTORY, zstandard.ZstdCompressor().compress(body), durable=True)
        return AttemptResult.of(trajectory)


class _Report(msgspec.Struct, frozen=True, kw_only=True):
    """``report.json``."""

    result: AttemptResult
    report: Any
    failure: Any


def _report(trajectory: Trajectory) -> bytes:
    document = _Report(
        result=AttemptResult.of(trajectory),
        report=trajectory.report,
        failure=trajectory.failure,
    )
    return msgspec.json.format(msgspec.json.encode(document))


def _encoded(trajectory: Trajectory) -> bytes:
    try:
        body = msgspec.json.encode(trajectory)
        msgspec.json.decode(body, type=Trajectory)
    except (msgspec.MsgspecError, TypeError) as error:
        raise ReplayError(
            f"The trajectory of {trajectory.instance_id!r} cannot be stored: {error}."
        ) from error
    return body


def load_trajectory(path: str | os.PathLike[str]) -> Trajectory:
    """The trajectory in a ``.json`` or ``.json.zst`` file.

    Raises:
        ReplayError: the file is missing or holds no trajectory.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
        if file.suffix == ".zst":
            data = zstandard.ZstdDecompressor().decompress(data)
        return Trajectory.from_dict(msgspec.json.decode(data))
    except (OSError, zstandard.ZstdError, msgspec.MsgspecError) as error:
        raise ReplayError(f"The trajectory {file} cannot be read: {error}.") from error


def to_toml(data: Mapping[str, Any]) -> str:
    """Nested plain data as TOML, which has no None: left out, and in a list an empty table."""
    lines: list[str] = []
    _table(data, (), lines)
    return "\n".join(lines) + "\n"


def _table(data: Mapping[str, Any], name: tuple[str, ...], lines: list[str]) -> None:
    if name:
        lines.append(f"\n[{'.'.join(json.dumps(part, ensure_ascii=False) for part in name)}]")
    tables = {key: value for key, value in data.items() if isinstance(value, Mapping)}
    for key, value in data.items():
        if key not in tables and value is not None:
            lines.append(f"{json.dumps(key)} = {_value(value)}")
    for key, value in tables.items():
        _table(value, (*name, key), lines)


def _value(value: Any) -> str:
    if value is None:
        return "{}"
    if isinstance(value, Mapping):
        pairs = (f"{json.dumps(k)} = {_value(v)}" for k, v in value.items() if v is not None)
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, float):
        return repr(value)  # inf and nan are TOML's words too
    # JSON's strings, integers and booleans are TOML's, but for the DEL character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        parts = (_differences(old.get(k), new.get(k), f"{name}.{k}" if name else k) for k in keys)
        return [key for part in parts for key in part]
    return [] if old == new else [name]


def _replace(file: Path, data: bytes, *, durable: bool = False) -> None:
    """Write a file by rename; `durable`: it is on the disk before it has its name."""
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    with temporary.open("wb") as opened:
        opened.write(data)
        if durable:
            opened.flush()
            os.fsync(opened.fileno())
    temporary.replace(file)
