"""A job's folder: ``<instance_id>/<attempt>/`` with what came of each attempt, and ``config.toml``.

The trajectory is written last and by rename, so an attempt whose trajectory is there is finished.
"""

from __future__ import annotations

import json
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

TRAJECTORY = "trajectory.json.zst"
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
                _replace(file, uuid.uuid4().hex.encode())
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
            _replace(file, text.encode())

    def result(self, instance_id: str, attempt: int) -> AttemptResult | None:
        """The result of a finished attempt, or None."""
        folder = self.attempt(instance_id, attempt)
        if not (folder / TRAJECTORY).exists():
            return None
        document = msgspec.json.decode((folder / "report.json").read_bytes())
        return msgspec.convert(document["result"], AttemptResult)

    def trajectory(self, instance_id: str, attempt: int) -> Trajectory:
        """The trajectory of a finished attempt.

        Raises:
            ReplayError: it cannot be read.
        """
        return load_trajectory(self.attempt(instance_id, attempt) / TRAJECTORY)

    def save(self, trajectory: Trajectory, log: str) -> AttemptResult:
        """Write everything about one attempt; finished when this returns.

        Raises:
            ReplayError: the trajectory would not read back; what was there before is left.
        """
        body = _encoded(trajectory)
        folder = self.attempt(trajectory.instance_id, trajectory.attempt)
        folder.mkdir(parents=True, exist_ok=True)
        # A trial that the machinery failed may have left one: no report may stand beside it.
        (folder / TRAJECTORY).unlink(missing_ok=True)
        result = AttemptResult.of(trajectory)
        document = {"result": result, "report": trajectory.report, "failure": trajectory.failure}
        (folder / "log").write_text(log)
        (folder / "patch.diff").write_text(trajectory.patch, newline="")
        _replace(folder / "report.json", msgspec.json.format(msgspec.json.encode(document)))
        _replace(folder / TRAJECTORY, zstandard.ZstdCompressor().compress(body))
        return result


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


def _replace(file: Path, data: bytes) -> None:
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    temporary.write_bytes(data)
    temporary.replace(file)
