"""Tasks as JSON lines: ours and SWE-bench's classic rows; plain or zstd-compressed."""

from __future__ import annotations

import difflib
import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import zstandard

from swe_env.errors import TaskError
from swe_env.types import Image, Recipe, Source, Task

SUFFIXES = (".jsonl", ".jsonl.zst")
_FIELDS = {field.name for field in fields(Task)}
_LISTS = ("FAIL_TO_PASS", "PASS_TO_PASS")


def read(path: str | Path) -> list[Task]:
    """Every task of a file.

    Raises:
        TaskError: there is no such file, a row is malformed (names the row and the field), or two
            rows have one instance id.
    """
    path = Path(path).expanduser()
    tasks: dict[str, Task] = {}
    for number, line in enumerate(lines_of(path), start=1):
        if not line.strip():
            continue
        task = _row(line, f"{path}, row {number}")
        if task.instance_id in tasks:
            raise TaskError(f"{path}, row {number}: {task.instance_id!r} is there twice.")
        tasks[task.instance_id] = task
    if not tasks:
        raise TaskError(f"{path} holds no task.")
    return list(tasks.values())


def dump(tasks: Iterable[Task], path: str | Path) -> None:
    """Write tasks so that `read` gives them back; the file is there whole or not at all.

    Raises:
        OSError: it cannot be written; names the file, and what was there before stays.
    """
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(msgspec.json.encode(task) + b"\n" for task in tasks)
    if path.name.endswith(".zst"):
        data = zstandard.ZstdCompressor(level=10).compress(data)
    try:
        _replace(path, data)
    except OSError as error:  # it has the temporary file's name, or none
        raise OSError(error.errno, error.strerror, str(path)) from error


def _replace(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a plain or zstd-compressed file.

    Raises:
        TaskError: there is no such file, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            if path.name.endswith(".zst"):
                with zstandard.ZstdDecompressor().stream_reader(file) as reader:
                    yield from io.BufferedReader(reader)
            else:
                yield from file
    except FileNotFoundError as error:
        near = difflib.get_close_matches(path.name, _neighbours(path), n=1)
        hint = f" Did you mean {str(path.with_name(near[0]))!r}?" if near else ""
        raise TaskError(f"There is no task file {str(path)!r}.{hint}") from error
    except (OSError, zstandard.ZstdError) as error:
        said = getattr(error, "strerror", None) or error
        raise TaskError(f"{path} cannot be read: {said}.") from error


def _neighbours(path: Path) -> list[str]:
    folder = path.parent
    return (
        [p.name for p in folder.iterdir() if p.name.endswith(SUFFIXES)] if folder.is_dir() else []
    )


def _row(line: bytes, where: str) -> Task:
    try:
        raw = msgspec.json.decode(line, type=dict[str, Any])
        return _task(raw)
    except msgspec.DecodeError as error:
        raise TaskError(f"{where}: {_plain(error)}.") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{where}: {not_utf8(error)}.") from error


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong with a row that is no text."""
    return f"the byte 0x{error.object[error.start]:02x} in it is no valid UTF-8"


def _task(raw: dict[str, Any]) -> Task:
    for name in _LISTS:
        # SWE-bench's classic rows hold these lists as JSON text.
        if isinstance(raw.get(name), str):
            try:
                raw[name] = msgspec.json.decode(raw[name] or "[]")
            except msgspec.DecodeError as error:
                said = f"it is no list as JSON text ({error})"
                raise msgspec.DecodeError(f"field {name!r}: {said}") from error
    extra = {key: raw.pop(key) for key in list(raw) if key not in _FIELDS}
    environment = raw.pop("environment", None)
    if raw.get("source") is None and isinstance(raw.get("repo"), str) and "/" in raw["repo"]:
        raw["source"] = {"kind": "git", "location": raw["repo"]}
    for name in ("hints_text", "version", "test_patch", "patch"):
        if name in raw and raw[name] is None:
            raw[name] = ""
    if extra:
        raw["metadata"] = {**(raw.get("metadata") or {}), "row": extra}
    if environment is not None:
        kind = Image if isinstance(environment, dict) and "name" in environment else Recipe
        raw["environment"] = {}
        task = _convert({**raw, "environment": None}, _Plain)
        made = _convert(environment, kind, "environment")
        return _finish(task, environment=made)
    return _finish(_convert(raw, _Plain))


class _Plain(msgspec.Struct, kw_only=True):
    """A row without its environment, whose type depends on its fields."""

    instance_id: str
    repo: str
    base_commit: str
    problem_statement: str
    hints_text: str = ""
    patch: str = ""
    test_patch: str = ""
    FAIL_TO_PASS: tuple[str, ...] = ()
    PASS_TO_PASS: tuple[str, ...] = ()
    version: str = ""
    source: Source | None = None
    base_patch: str = ""
    environment: None = None
    test_command: str = "python -m pytest"
    log_parser: str = "pytest"
    metadata: dict[str, Any] = {}


def _convert(value: Any, kind: type[Any], at: str = "") -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        raise msgspec.ValidationError(message.replace("`$", f"`$.{at}" if at else "`$")) from error


def _finish(plain: _Plain, **changed: Any) -> Task:
    values = {name: getattr(plain, name) for name in plain.__struct_fields__}
    values.pop("environment")
    return Task(**values, **changed)


def _plain(error: Exception) -> str:
    """The decoder's message with the field named instead of a JSON path."""
    message = str(error)
    said, _, path = message.partition(" - at `$.")
    return f"field {path.rstrip('`')!r}: {said.lower()}" if path else message
