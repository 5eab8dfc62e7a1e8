"""Grade a file of predictions (``instance_id``, ``model_patch``), as the SWE-bench harness does."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from swe_env import sandbox as sandboxes
from swe_env.cache import digest
from swe_env.errors import ConfigError, InfrastructureError, SweError, TaskError
from swe_env.grading.verdict import grade
from swe_env.sandbox import SandboxFactory
from swe_env.types import Task, TestReport

Progress = Callable[[str, int, int], None]
"""Called with a label, how many predictions are done, of how many."""
Status = Literal["resolved", "unresolved", "empty", "failed"]


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a predictions file."""

    instance_id: str
    model_patch: str | None = None
    """A unified diff; empty or None where the agent gave none."""
    model_name_or_path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """What became of one prediction."""

    instance_id: str
    model_name_or_path: str
    status: Status
    """``empty``: no patch, so unresolved without a run. ``failed``: the machinery did; the
    prediction counts nowhere and is graded again by the next call."""
    report: TestReport | None = None
    error: str = ""
    """Why it was not graded."""
    key: str = ""
    """Digest of task, patch and how it was graded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All predictions of a file; plain data, so it can be written as JSON."""

    graded: tuple[Graded, ...]
    missing: tuple[str, ...]
    """Tasks that no prediction names; they count as unresolved in a benchmark's score."""
    unknown: tuple[str, ...]
    """Predictions for tasks that are not in the source; left out."""

    @property
    def counts(self) -> dict[str, int]:
        """Status → predictions."""
        return dict(Counter(found.status for found in self.graded))


def read_predictions(path: str | Path) -> list[Prediction]:
    """The predictions of a JSON Lines file, a JSON list, or a JSON object by instance id.

    Raises:
        ConfigError: it cannot be read, a row has no ``instance_id``, or two have the same.
    """
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"The predictions {path} cannot be read: {reason}.") from error
    found = [_prediction(path, where, row) for where, row in _rows(path, text)]
    twice = [name for name, n in Counter(p.instance_id for p in found).items() if n > 1]
    if twice:
        raise ConfigError(
            f"{path} has several predictions for {twice[0]}: give one for each task, for several "
            "attempts a file each."
        )
    return found


def grade_predictions(
    tasks: Sequence[Task],
    predictions: Iterable[Prediction],
    *,
    sandbox: SandboxFactory | str = "auto",
    timeout: float = 600.0,
    workers: int = 0,
    fuzzy: bool = True,
    record: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Grade each prediction in a fresh sandbox by its task's hidden tests.

    Args:
        tasks: the whole tasks, answers included.
        predictions: at most one for a task.
        sandbox: where, a factory or its name.
        timeout: seconds for one run of the tests.
        workers: predictions at once; 0 for one per core.
        fuzzy: see `grade`; the harness applies patches so.
        record: JSON Lines file that gets a `Graded` for each prediction; a second call with the
            same file goes on after those that are in it and have not changed, nor how they are
            graded. A verdict with an `error` (a time-out, a run that ended early) is made anew.
        progress: called after each prediction.

    Raises:
        ConfigError: `workers` is out of range, there is no such sandbox, or `record` is no record.
        TaskError: `record` cannot be written.
    """
    if workers < 0:
        raise ConfigError("Grading wants 0 workers (one per core) or more.")
    factory = sandboxes.get(sandbox) if isinstance(sandbox, str) else sandbox
    how = (fuzzy, timeout, sandboxes.name_of(sandbox))
    by_id = {task.instance_id: task for task in tasks}
    known: list[Prediction] = []
    unknown: list[Prediction] = []
    for prediction in predictions:
        (known if prediction.instance_id in by_id else unknown).append(prediction)
    done = _read(record) if record else {}
    graded: dict[str, Graded] = {}

    def one(prediction: Prediction) -> Graded:
        task = by_id[prediction.instance_id]
        key = _key(task, prediction, how)
        if key in done:
            return done[key]
        found = _grade(task, prediction, key, factory, timeout, fuzzy)
        write(found)  # here, so that what runs when a call is stopped is kept as well
        return found

    with _appending(record) as write, ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        futures = [pool.submit(one, prediction) for prediction in known]
        try:
            for future in as_completed(futures):
                found = future.result()
                graded[found.instance_id] = found
                if progress is not None:
                    progress("predictions", len(graded), len(known))
        finally:
            for future in futures:
                future.cancel()
    return Evaluation(
        graded=tuple(graded[prediction.instance_id] for prediction in known),
        missing=tuple(name for name in by_id if name not in graded),
        unknown=tuple(prediction.instance_id for prediction in unknown),
    )


def _grade(
    task: Task,
    prediction: Prediction,
    key: str,
    factory: SandboxFactory,
    timeout: float,
    fuzzy: bool,
) -> Graded:
    patch, report, error = prediction.model_patch or "", None, ""
    status: Status = "empty"
    if patch.strip():
        try:
            report = grade(task, patch, sandbox=factory, timeout=timeout, fuzzy=fuzzy)
            status = "resolved" if report.resolved else "unresolved"
        except SweError as failure:
            status, error = "failed", str(failure)
            if not isinstance(failure, InfrastructureError | TaskError):
                raise
    return Graded(
        instance_id=task.instance_id,
        model_name_or_path=prediction.model_name_or_path,
        status=status,
        report=report,
        error=error,
        key=key,
    )


def _key(task: Task, prediction: Prediction, how: tuple[object, ...]) -> str:
    parts = (digest(task), prediction.model_patch or "", prediction.model_name_or_path, *how)
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _rows(path: str | Path, text: str) -> Iterator[tuple[str, object]]:
    """(where, row) of each prediction."""
    with contextlib.suppress(ValueError):
        whole = json.loads(text)
        if isinstance(whole, dict) and "instance_id" not in whole:
            for name, row in whole.items():
                named = {"instance_id": name, **row} if isinstance(row, dict) else row
                yield f"entry {name!r}", named
            return
        for number, row in enumerate(whole if isinstance(whole, list) else [whole], 1):
            yield f"row {number}", row
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{path}, line {number}, is not JSON: {error}.") from error


def _prediction(path: str | Path, where: str, row: object) -> Prediction:
    try:
        return msgspec.convert(row, Prediction)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{path}, {where}, is no prediction ({error}): it needs instance_id and model_patch."
        ) from error


def _read(record: str | Path) -> dict[str, Graded]:
    """What an earlier call graded to its end, by its key; a torn last line is left out."""
    path, found = Path(record), dict[str, Graded]()
    if not path.exists():
        return found
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            continue
        try:
            row = msgspec.json.decode(line, type=Graded)
        except msgspec.MsgspecError as error:
            raise ConfigError(
                f"{path}, line {number}, is no record of graded predictions ({error}): give "
                "another file."
            ) from error
        if row.status != "failed" and not (row.report and row.report.error):
            found[row.key] = row
    return found


@contextlib.contextmanager
def _appending(record: str | Path | None) -> Iterator[Callable[[Graded], None]]:
    if record is None:
        yield lambda _: None
        return
    path = Path(record)
    with _told(path):
        whole = path.read_bytes() if path.exists() else b""
        file = path.open("ab", buffering=0)
    with file:
        with _told(path):
            file.truncate(whole.rfind(b"\n") + 1)  # a killed run may have left a torn line

        def write(found: Graded) -> None:
            with _told(path):
                file.write(msgspec.json.encode(found) + b"\n")

        yield write


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say which file it is that cannot be written."""
    try:
        yield
    except OSError as error:
        raise TaskError(f"{path} cannot be written: {error.strerror}.") from error
