"""Prove tasks: base fails what it should, gold resolves, nothing done does not, every time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from swe_env.errors import SweError
from swe_env.grading import PASSING, grade
from swe_env.sandbox import SandboxFactory
from swe_env.types import Task, TestReport

Progress = Callable[[str, int, int], None]
"""Called with a label, how many tasks are done, of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What the runs of one task showed."""

    instance_id: str
    valid: bool
    """Every run of gold resolved, every run of the empty patch failed each FAIL_TO_PASS test and
    passed each PASS_TO_PASS test."""
    flaky: tuple[str, ...] = ()
    """Tests whose outcome differed between runs of the same patch."""
    problems: tuple[str, ...] = ()
    """Why it is not valid, one sentence each."""
    runs: int = 0
    seconds: float = 0.0
    """Time of the tests' own processes, all runs together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """The proofs of many tasks; plain data, so it can be written as JSON."""

    repeats: int
    proofs: tuple[Proof, ...]
    valid: int
    quarantined: int
    """Tasks with flaky tests."""
    invalid: int
    """Tasks that are wrong in every run."""
    tasks: tuple[Task, ...] = field(default=(), repr=False)
    """The tasks with ``metadata["validation"]`` (and ``metadata["quarantine"]``) filled in."""


def validate(
    tasks: Sequence[Task],
    *,
    sandbox: SandboxFactory | str = "auto",
    repeats: int = 3,
    workers: int = 0,
    timeout: float = 600.0,
    progress: Progress | None = None,
) -> Validation:
    """Grade each task's gold patch and the empty patch, `repeats` times.

    Args:
        tasks: what to prove.
        sandbox: where, a factory or its name.
        repeats: runs of each patch.
        workers: tasks at once; 0 for one per core.
        timeout: seconds for one run of the tests.
        progress: called after each task.

    Raises:
        SweError: never for a task, whose problem is told in its `Proof`.
    """
    done = 0

    def prove(task: Task) -> Proof:
        try:
            return _prove(task, sandbox, repeats, timeout)
        except SweError as error:
            return Proof(instance_id=task.instance_id, valid=False, problems=(str(error),))

    proofs = []
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for proof in pool.map(prove, tasks):
            proofs.append(proof)
            done += 1
            if progress:
                progress("validate", done, len(tasks))
    quarantined = sum(bool(proof.flaky) for proof in proofs)
    valid = sum(proof.valid for proof in proofs)
    return Validation(
        repeats=repeats,
        proofs=tuple(proofs),
        valid=valid,
        quarantined=quarantined,
        invalid=len(proofs) - valid - quarantined,
        tasks=tuple(_noted(task, proof) for task, proof in zip(tasks, proofs, strict=True)),
    )


def _prove(task: Task, sandbox: SandboxFactory | str, repeats: int, timeout: float) -> Proof:
    def run(patch: str) -> list[TestReport]:
        graded = (
            grade(task, patch, sandbox=sandbox, timeout=timeout) for _ in range(max(1, repeats))
        )
        return list(graded)

    gold, empty = run(task.patch), run("")
    flaky = sorted(_differing(gold) | _differing(empty))
    problems = [*_gold_problems(gold), *_empty_problems(empty)]
    if not task.FAIL_TO_PASS:
        problems.append("It has no FAIL_TO_PASS test.")
    return Proof(
        instance_id=task.instance_id,
        valid=not problems and not flaky,
        flaky=tuple(flaky),
        problems=tuple(dict.fromkeys(problems)),
        runs=len(gold) + len(empty),
        seconds=round(sum(report.seconds for report in (*gold, *empty)), 3),
    )


def _differing(reports: Sequence[TestReport]) -> set[str]:
    outcomes: dict[str, set[str]] = {}
    for report in reports:
        for test, outcome in {**report.fail_to_pass, **report.pass_to_pass}.items():
            outcomes.setdefault(test, set()).add(outcome)
    return {test for test, seen in outcomes.items() if len(seen) > 1}


def _gold_problems(reports: Sequence[TestReport]) -> list[str]:
    problems = []
    for report in reports:
        if not report.resolved:
            tests = {**report.fail_to_pass, **report.pass_to_pass}
            bad = [f"{test} {outcome}" for test, outcome in tests.items() if outcome not in PASSING]
            why = report.error or "; ".join([*bad[:3], *report.tampering[:1]]) or "no reason given"
            problems.append(f"The gold patch does not resolve it: {why}.")
    return problems


def _empty_problems(reports: Sequence[TestReport]) -> list[str]:
    problems = []
    for report in reports:
        passing = [test for test, outcome in report.fail_to_pass.items() if outcome in PASSING]
        broken = [test for test, outcome in report.pass_to_pass.items() if outcome not in PASSING]
        if report.resolved:
            problems.append("The empty patch resolves it.")
        elif passing:
            problems.append(f"Without a patch {passing[0]} passes already.")
        if broken:
            problems.append(f"Without a patch {broken[0]} fails already.")
    return problems


def _noted(task: Task, proof: Proof) -> Task:
    noted = {"valid": proof.valid, "runs": proof.runs, "problems": list(proof.problems)}
    metadata = {**task.metadata, "validation": noted}
    if proof.flaky:
        metadata["quarantine"] = list(proof.flaky)
    return replace(task, metadata=metadata)
