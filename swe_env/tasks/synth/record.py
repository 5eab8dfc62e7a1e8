"""A bug that holds, written down as a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swe_env.cache import digest
from swe_env.repos import file_diff
from swe_env.tasks.leaks import leaked
from swe_env.tasks.mutate import Candidate, Text
from swe_env.tasks.statement import Place, several, write
from swe_env.tasks.synth.package import Package
from swe_env.tasks.synth.settings import Settings
from swe_env.tasks.synth.trial import Bug
from swe_env.types import Task

SYMPTOMS = 3
"""Failing behaviours that a statement tells at most, where it does not quote the line."""


def task_of(package: Package, settings: Settings, bug: Bug) -> Task | None:
    """The task; None when its symptoms cannot be told, or not without telling the patch."""
    places = [_place(candidate, bug) for candidate in bug.candidates]
    statement = _statement(bug, places, settings)
    injected = "".join(file_diff(path, *texts) for path, texts in sorted(bug.sources.items()))
    removed = "".join(file_diff(path, *texts) for path, texts in sorted(bug.tests.items()))
    patch = "".join(file_diff(p, new, old) for p, (old, new) in sorted(bug.sources.items()))
    if not statement or leaked(statement, patch):
        return None
    return Task(
        instance_id=f"{package.label}-{_key(package, bug)}",
        repo=package.name,
        version=package.version,
        base_commit=package.base_commit,
        source=package.source,
        problem_statement=statement,
        base_patch=injected + removed,
        patch=patch,
        test_patch="".join(file_diff(p, new, old) for p, (old, new) in sorted(bug.tests.items())),
        FAIL_TO_PASS=bug.fail_to_pass,
        PASS_TO_PASS=bug.pass_to_pass,
        environment=package.recipe,
        test_command=settings.test_command,
        metadata={
            "generator": "synth",
            "seed": settings.seed,
            "detail": settings.detail,
            **_named(bug.candidates, places),
        },
    )


def _key(package: Package, bug: Bug) -> str:
    made: object = bug.candidate.key
    if len(bug.candidates) > 1:
        made = sorted(candidate.key for candidate in bug.candidates)
    origin: list[object] = [package.source, made]
    return digest([*origin, package.revision] if package.revision else origin)[:8]


def _named(candidates: tuple[Candidate, ...], places: list[Place]) -> dict[str, Any]:
    """Which operator changed which function: the bug's own, and all of them when they are many."""
    bugs = [
        {
            "operator": candidate.operator,
            "path": candidate.path,
            "function": candidate.function,
            "line": place.line,
        }
        for candidate, place in zip(candidates, places, strict=True)
    ]
    if len(bugs) == 1:
        return bugs[0]
    joined = "+".join(sorted({candidate.operator for candidate in candidates}))
    return {**bugs[0], "operator": joined, "bugs": bugs}


def _place(candidate: Candidate, bug: Bug) -> Place:
    """Where a bug shows in the buggy file, whose lines other bugs may have moved."""
    before, after = (Text(text.encode()) for text in bug.sources[candidate.path])
    edits = [edit for one in bug.candidates if one.path == candidate.path for edit in one.edits]
    start = candidate.edits[0].start
    line = candidate.line
    for edit in edits:
        if edit.start < start:
            line += edit.text.count(b"\n") - before.data[edit.start : edit.end].count(b"\n")
    moved = start + sum(len(e.text) - (e.end - e.start) for e in edits if e.start < start)
    if candidate.edits[0].text == b"" and moved == after.offset(line, 0):
        line -= 1  # whole lines are gone: what shows is the line before them
    return Place(candidate.path, candidate.function, line, after.line(line))


def _statement(bug: Bug, places: list[Place], settings: Settings) -> str:
    symptoms = 1 if settings.detail == "line" else SYMPTOMS
    if len(places) == 1:
        return write(bug.failures.values(), places[0], settings.detail, symptoms=symptoms)
    told = [
        write(_own(bug.failures, part), place, settings.detail)
        for part, place in zip(bug.parts, places, strict=True)
    ]
    return several(told) if all(told) else ""


def _own(failures: Mapping[str, Mapping[str, Any]], part: Bug) -> list[Mapping[str, Any]]:
    """What the tests show that one of the bugs breaks on its own."""
    return [facts for test, facts in failures.items() if test in part.fail_to_pass]
