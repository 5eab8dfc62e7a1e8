"""`swe grade`: predictions against a benchmark's hidden tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from swe_env.tasks.commands import Bar

if TYPE_CHECKING:
    from swe_env.grading.predictions import Evaluation


def register(app: typer.Typer) -> None:
    """Mount this module's command."""
    app.command()(grade)


def grade(
    predictions: Annotated[Path, typer.Argument(help="JSON or JSON Lines, as SWE-bench has them.")],
    tasks: Annotated[str, typer.Option(help="Task source, such as swebench:lite.")],
    out: Annotated[
        Path | None, typer.Option(help="Record of what was graded; run again to continue.")
    ] = None,
    sandbox: Annotated[str, typer.Option(help="auto, local, docker or process.")] = "auto",
    workers: Annotated[int, typer.Option(help="Predictions at once; 0 for one per core.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds for one run of a task's tests.")] = 600.0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse patches that only `patch --fuzz=5` takes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Grade a predictions file by the tasks' hidden tests, each in a fresh sandbox.

    Exit code 3: the machinery failed for some; they count nowhere and the next call tries again.
    """
    from swe_env.grading.predictions import grade_predictions, read_predictions
    from swe_env.tasks import load

    given = read_predictions(predictions)
    found = grade_predictions(
        load(tasks, progress=Bar()),
        given,
        sandbox=sandbox,
        timeout=timeout,
        workers=workers,
        fuzzy=not strict,
        record=out,
        progress=Bar(),
    )
    if as_json:
        data = dataclasses.asdict(found) | {"counts": found.counts}
        typer.echo(msgspec.json.encode(data).decode())
    else:
        for one in found.graded:
            why = one.error or (one.report.error if one.report else "")
            typer.echo(f"{one.instance_id}: {one.status}{': ' if why else ''}{why}")
        typer.echo(_summary(found))
    if found.counts.get("failed"):
        raise typer.Exit(3)


def _summary(found: Evaluation) -> str:
    counts, total = found.counts, len(found.graded) + len(found.missing)
    return (
        f"{counts.get('resolved', 0)} of {total} tasks resolved; {counts.get('empty', 0)} empty "
        f"patches, {counts.get('failed', 0)} not graded, {len(found.missing)} tasks without a "
        f"prediction, {len(found.unknown)} predictions for other tasks."
    )
