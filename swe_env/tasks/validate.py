"""Prove tasks: base fails what it should, gold resolves, nothing done does not, every time."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from swe_env import sandbox as sandboxes
from swe_env.cache import digest
from swe_env.errors import ConfigError, InfrastructureError, SweError, TaskError
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
    passed each PASS_TO_PASS test; flaky tests aside, of which `flaky` tells."""
    status: str = ""
    """``valid``; ``quarantined`` (no FAIL_TO_PASS test but flaky ones); ``invalid`` (wrong in every
    run); ``failed`` (the machinery did: nothing is known of the task)."""
    flaky: dict[str, str] = field(default_factory=dict)
    """Test whose outcome differed between runs of the same patch → how."""
    problems: tuple[str, ...] = ()
    """Why it is not valid, one sentence each."""
    runs: int = 0
    seconds: float = 0.0
    """Time of the tests' own processes, all runs together."""
    key: str = ""
    """Digest of the task and of how it was proven."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """The proofs of many tasks; plain data, so it can be written as JSON."""

    repeats: int
    proofs: tuple[Proof, ...]
    valid: int
    quarantined: int
    """Tasks whose every FAIL_TO_PASS test is flaky."""
    invalid: int
    """Tasks that are wrong in every run."""
    failed: int = 0
    """Tasks of which nothing is known, as the machinery failed."""
    flaky_tests: int = 0
    """Tests taken out of the tasks' lists."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Why tasks were dropped, and how many for that reason."""
    tasks: tuple[Task, ...] = field(default=(), repr=False)
    """The tasks with ``metadata["validation"]`` (and ``metadata["quarantine"]``) filled in, flaky
    tests taken out of their lists."""


def validate(
    tasks: Sequence[Task],
    *,
    sandbox: SandboxFactory | str = "auto",
    repeats: int = 3,
    workers: int = 0,
    timeout: float = 600.0,
    record: str | Path | None = None,
    progress: Progress | None = None,
) -> Validation:
    """Grade each task's gold patch and the empty patch, `repeats` times.

    The empty patch on the task's base with the hidden tests put in is the base run: it must fail
    every FAIL_TO_PASS test and pass every PASS_TO_PASS test. The first run has the tests in their
    own order, each other run in another one (where the runner is pytest).

    Args:
        tasks: what to prove.
        sandbox: where, a factory or its name.
        repeats: runs of each patch.
        workers: tasks at once; 0 for one per core.
        timeout: seconds for one run of the tests.
        record: file that gets a line for each proven task; a second call with the same file goes
            on after the tasks that are in it and have not changed, nor how they are proven.
        progress: called after each task.

    Raises:
        ConfigError: `repeats` or `workers` is out of range, or there is no such sandbox.
        TaskError: `record` cannot be written.
    """
    if repeats < 1 or workers < 0:
        raise ConfigError("Validation wants 1 repeat or more, and 0 workers or more.")
    factory = sandboxes.get(sandbox) if isinstance(sandbox, str) else sandbox
    log = _Record(record) if record else None
    how = (repeats, timeout, sandboxes.name_of(sandbox))
    keys = [_key(task, how) for task in tasks]
    proofs = {key: proof for key, proof in (log.read() if log else {}).items() if key in keys}

    def prove(task: Task, key: str) -> Proof:
        try:
            return replace(_prove(task, factory, repeats, timeout), key=key)
        except SweError as error:
            status = "failed" if isinstance(error, InfrastructureError) else "invalid"
            return Proof(
                instance_id=task.instance_id,
                valid=False,
                status=status,
                problems=(str(error),),
                key=key,
            )

    if progress and proofs:
        progress("validate", len(proofs), len(tasks))
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        left = {key: task for key, task in zip(keys, tasks, strict=True) if key not in proofs}
        futures = [pool.submit(prove, task, key) for key, task in left.items()]
        try:
            for future in as_completed(futures):
                proof = future.result()
                proofs[proof.key] = proof
                # What failed by the machinery is tried again next time.
                if log and proof.status != "failed":
                    log.add(proof)
                if progress:
                    progress("validate", len(proofs), len(tasks))
        finally:
            for future in futures:
                future.cancel()
    return _summary(tasks, [proofs[key] for key in keys], repeats)


def _summary(tasks: Sequence[Task], proofs: Sequence[Proof], repeats: int) -> Validation:
    counts = Counter(proof.status for proof in proofs)
    dropped = Counter(_reason(proof) for proof in proofs if not proof.valid)
    return Validation(
        repeats=repeats,
        proofs=tuple(proofs),
        valid=counts["valid"],
        quarantined=counts["quarantined"],
        invalid=counts["invalid"],
        failed=counts["failed"],
        flaky_tests=sum(len(proof.flaky) for proof in proofs),
        reasons=dict(dropped.most_common()),
        tasks=tuple(_noted(task, proof) for task, proof in zip(tasks, proofs, strict=True)),
    )


def _reason(proof: Proof) -> str:
    """The first problem without what is the task's own: tests and details."""
    first = proof.problems[0] if proof.problems else proof.status
    for start in _KINDS:
        if first.startswith(start):
            return start
    return first.split(":")[0].replace(proof.instance_id, "the task").rstrip(".")


def _key(task: Task, how: tuple[object, ...]) -> str:
    plain = {k: v for k, v in task.metadata.items() if k not in ("validation", "quarantine")}
    return digest([replace(task, metadata=plain), *how])


class _Record:
    """Proofs as JSON lines, each written whole as soon as it is known."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A line that a killed run left unfinished must not swallow the next.
            data = self.path.read_bytes() if self.path.exists() else b""
            with self.path.open("ab") as file:
                file.write(b"" if data.endswith(b"\n") or not data else b"\n")
        except OSError as error:
            raise TaskError(f"The record {self.path} cannot be written: {error}.") from error

    def read(self) -> dict[str, Proof]:
        """Proofs by key; lines that are no proof are left out."""
        found = {}
        for line in self.path.read_bytes().splitlines():
            try:
                proof = msgspec.json.decode(line, type=Proof)
            except msgspec.DecodeError:
                continue
            found[proof.key] = proof
        return found

    def add(self, proof: Proof) -> None:
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(proof) + b"\n")


_KINDS = (
    "The gold patch does not resolve it",
    "The empty patch resolves it",
    "Without a patch a FAIL_TO_PASS test passes already",
    "Without a patch a PASS_TO_PASS test fails already",
    "It has no FAIL_TO_PASS test",
    "Each of its FAIL_TO_PASS tests is flaky",
)
"""How problems begin, for the report's counts."""


def _prove(task: Task, sandbox: SandboxFactory, repeats: int, timeout: float) -> Proof:
    gold = list(_runs(task, task.patch, sandbox, repeats, timeout))
    empty = list(_runs(task, "", sandbox, repeats, timeout))
    flaky = {**_differing(empty, "without a patch"), **_differing(gold, "with the gold patch")}
    left = [test for test in task.FAIL_TO_PASS if test not in flaky]
    problems = [*_gold_problems(gold, flaky), *_empty_problems(empty, flaky)]
    if not task.FAIL_TO_PASS:
        problems.append("It has no FAIL_TO_PASS test.")
    quarantined = bool(task.FAIL_TO_PASS) and not left
    if quarantined:
        problems = ["Each of its FAIL_TO_PASS tests is flaky."]
    return Proof(
        instance_id=task.instance_id,
        valid=not problems,
        status="quarantined" if quarantined else "invalid" if problems else "valid",
        flaky=dict(sorted(flaky.items())),
        problems=tuple(dict.fromkeys(problems)),
        runs=len(gold) + len(empty),
        seconds=round(sum(report.seconds for report in (*gold, *empty)), 3),
    )


def _runs(
    task: Task, patch: str, sandbox: SandboxFactory, repeats: int, timeout: float
) -> Iterator[TestReport]:
    for number in range(repeats):
        ordered = task
        if number and task.log_parser == "pytest":
            # An option of the grader's own plugin (swe_env.grading.pytest_plugin).
            ordered = replace(task, test_command=f"{task.test_command} --swe-env-order={number}")
        yield grade(ordered, patch, sandbox=sandbox, timeout=timeout)


def _outcomes(report: TestReport) -> dict[str, str]:
    return {**report.fail_to_pass, **report.pass_to_pass}


def _differing(reports: Sequence[TestReport], when: str) -> dict[str, str]:
    """Tests that pass in some runs of a patch only, and how: in which runs."""
    flaky = {}
    for test in _outcomes(reports[0]):
        passes = [_outcomes(report)[test] in PASSING for report in reports]
        if len(set(passes)) == 1:
            continue
        failing = ", ".join(str(n) for n, passed in enumerate(passes, start=1) if not passed)
        # Only the first run has the tests in their own order.
        ordered = len(passes) > 2 and len(set(passes[1:])) == 1
        cause = "it seems to depend on the tests' order" if ordered else "it flakes"
        flaky[test] = f"{when} it fails in run {failing} of {len(passes)} only: {cause}"
    return flaky


def _gold_problems(reports: Sequence[TestReport], flaky: dict[str, str]) -> list[str]:
    problems = []
    for report in reports:
        bad = [
            f"{test} {outcome}"
            for test, outcome in _outcomes(report).items()
            if outcome not in PASSING and test not in flaky
        ]
        # Not resolved though nothing but a flaky test failed is no fault of the patch.
        excused = any(_outcomes(report).get(test) not in PASSING for test in flaky)
        if bad or report.error or not (report.resolved or excused):
            why = report.error or "; ".join([*bad[:3], *report.tampering[:1]]) or "no reason given"
            problems.append(f"The gold patch does not resolve it: {why}.")
    return problems


def _empty_problems(reports: Sequence[TestReport], flaky: dict[str, str]) -> list[str]:
    problems = []
    for report in reports:
        passing = [test for test, outcome in report.fail_to_pass.items() if outcome in PASSING]
        broken = [test for test, outcome in report.pass_to_pass.items() if outcome not in PASSING]
        passing = [test for test in passing if test not in flaky]
        broken = [test for test in broken if test not in flaky]
        if report.resolved and passing:
            problems.append("The empty patch resolves it.")
        elif passing:
            problems.append(f"Without a patch a FAIL_TO_PASS test passes already: {passing[0]}.")
        if broken:
            problems.append(f"Without a patch a PASS_TO_PASS test fails already: {broken[0]}.")
    return problems


def _noted(task: Task, proof: Proof) -> Task:
    """The task with its proof in its metadata and without its flaky tests."""
    noted = {
        "valid": proof.valid,
        "status": proof.status,
        "runs": proof.runs,
        "problems": list(proof.problems),
    }
    metadata = {**task.metadata, "validation": noted}
    earlier = metadata.get("quarantine")
    quarantine = {**(earlier if isinstance(earlier, dict) else {}), **proof.flaky}
    if quarantine:
        metadata["quarantine"] = quarantine
    return replace(
        task,
        metadata=metadata,
        FAIL_TO_PASS=tuple(test for test in task.FAIL_TO_PASS if test not in proof.flaky),
        PASS_TO_PASS=tuple(test for test in task.PASS_TO_PASS if test not in proof.flaky),
    )
