"""Reads rows from JSON lines, JSON, parquet or the Hugging Face hub, each with where it stands."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from swe_env.errors import TaskError
from swe_env.tasks.rows import SUFFIXES, lines_of, not_utf8

_EXTRA = "install it with `pip install 'swe-env[datasets]'`"
_HUB = re.compile(r"^[\w.-]+/[\w.-]+$")
_FILES = (*SUFFIXES, ".json", ".parquet")


class Row(NamedTuple):
    """One row and its place, for messages."""

    where: str
    """File or data set, and number: ``lite.jsonl, row 3``."""
    values: dict[str, Any]


def read_rows(location: str, *, split: str) -> Iterator[Row]:
    """The rows of a file, of a folder of parquet files, or of a data set on the hub.

    Args:
        location: a path ending in .jsonl, .jsonl.zst, .json or .parquet, a folder with parquet
            files, or ``owner/name`` of a data set.
        split: which split of a data set on the hub; in a folder, which files.

    Raises:
        TaskError: there is nothing there, it cannot be read, or a package for it is missing.
    """
    path = Path(location).expanduser()
    if path.is_dir():
        yield from _folder(path, split)
    elif location.endswith(_FILES):
        yield from _file(path)
    elif _HUB.match(location):
        yield from _hub(location, split)
    else:
        raise TaskError(
            f"{location!r} is no file of rows ({', '.join(_FILES)}), no folder of them, and no "
            "owner/name of a data set on the Hugging Face hub."
        )


def _file(path: Path) -> Iterator[Row]:
    if path.suffix == ".parquet":
        yield from _parquet(path, path.name)
    elif path.suffix == ".json":
        yield from _json(path)
    else:
        for number, line in enumerate(lines_of(path), start=1):
            if line.strip():
                where = f"{path}, row {number}"
                yield Row(where, _decoded(line, dict[str, Any], where))


def _json(path: Path) -> Iterator[Row]:
    data = b"".join(lines_of(path))
    for number, values in enumerate(_decoded(data, list[dict[str, Any]], str(path)), start=1):
        yield Row(f"{path}, row {number}", values)


def _decoded(data: bytes, kind: Any, where: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise TaskError(f"{where}: {error}.") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{where}: {not_utf8(error)}.") from error


def _folder(path: Path, split: str) -> Iterator[Row]:
    found = sorted(path.rglob("*.parquet"))
    chosen = [file for file in found if file.name.startswith(split)] if split else found
    if not chosen:
        names = sorted({file.name.partition("-")[0].removesuffix(".parquet") for file in found})
        hint = f" It has {', '.join(names)}." if names else " It has no parquet file at all."
        raise TaskError(f"The folder {path} has no parquet file of the split {split!r}.{hint}")
    for file in chosen:
        yield from _parquet(file, file.name)


def _parquet(path: Path, label: str) -> Iterator[Row]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise TaskError(f"Reading {label} needs the package pyarrow: {_EXTRA}.") from error
    try:
        file = parquet.ParquetFile(path)
    except FileNotFoundError as error:
        raise TaskError(f"There is no parquet file {str(path)!r}.") from error
    except (OSError, ValueError) as error:
        raise TaskError(f"{path} cannot be read as parquet: {_first(error)}.") from error
    number = 0
    for batch in file.iter_batches(batch_size=64):
        for values in batch.to_pylist():
            number += 1
            yield Row(f"{label}, row {number}", values)


def _hub(name: str, split: str) -> Iterator[Row]:
    """Rows of a data set through its parquet files, which the hub has for every data set."""
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import RepositoryNotFoundError
    except ImportError as error:
        raise TaskError(
            f"The data set {name} needs the package huggingface_hub: {_EXTRA}."
        ) from error
    try:
        listed = hub.list_repo_files(name, repo_type="dataset")
        files = [file for file in listed if file.endswith(".parquet")]
        chosen = [file for file in files if Path(file).name.startswith(f"{split}-")]
        if not chosen:
            raise TaskError(_no_split(name, split, files))
        paths = [hub.hf_hub_download(name, file, repo_type="dataset") for file in sorted(chosen)]
    except RepositoryNotFoundError as error:
        raise TaskError(
            f"There is no data set {name} on the Hugging Face hub, or it needs a token "
            "(`hf auth login`)."
        ) from error
    except TaskError:
        raise
    # The client raises whatever its HTTP library does; each of them means the same here.
    except Exception as error:
        raise TaskError(
            f"The data set {name} could not be fetched ({_first(error)}): check the network, or "
            "give a file of its rows."
        ) from error
    for path in paths:
        yield from _parquet(Path(path), f"{name} {Path(path).name}")


def _no_split(name: str, split: str, files: list[str]) -> str:
    names = sorted({Path(file).name.partition("-")[0] for file in files})
    if not names:
        return f"The data set {name} has no parquet files: convert it, or give a file of its rows."
    near = difflib.get_close_matches(split, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}."
    return f"The data set {name} has no split {split!r}: {hint}"


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:200]
