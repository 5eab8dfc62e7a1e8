"""`grade`: the verdict on a patch, in a fresh sandbox, by the task's own tests."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from swe_env import sandbox as sandboxes
from swe_env.errors import GradingError, PatchError, PatchRefused
from swe_env.grading import guard
from swe_env.grading.ids import outcomes_of
from swe_env.grading.patches import apply_patch, patch_paths
from swe_env.grading.runs import PASSING, TestRun, run_tests, runners
from swe_env.sandbox.base import Files, Limits, Sandbox, SandboxFactory, SandboxSpec
from swe_env.types import Task, TestReport


@dataclass(slots=True)
class _Findings:
    """What was noticed: `notes` are put right and named, `cheats` also cost the verdict."""

    notes: list[str] = field(default_factory=list)
    cheats: list[str] = field(default_factory=list)


def grade(
    task: Task,
    patch: str,
    *,
    sandbox: SandboxFactory | str = "auto",
    timeout: float = 600.0,
    limits: Limits | None = None,
    spec: SandboxSpec | None = None,
    from_diff: bool = False,
    fuzzy: bool = False,
) -> TestReport:
    """Grade a patch against the task's hidden tests.

    A fresh sandbox at the task's starting state; the patch; the task's own versions of its test
    files and of everything that decides how tests run put back; the hidden tests; one run.

    Args:
        task: the whole task, answer included.
        patch: unified diff from the task's starting state; empty for "nothing was done".
        sandbox: where to run, a factory or its name.
        timeout: seconds for the tests.
        limits: what the tests may use; the sandbox's own default when None.
        spec: the starting state; `swe_env.repos.sandbox_spec(task)` when None.
        from_diff: the patch is what `Sandbox.diff` gave, and was written by nobody: when it does
            not apply, the machinery failed.
        fuzzy: a patch that git does not take as it stands is tried with ``patch --fuzz=5``, as the
            SWE-bench harness does; the report says so.

    Raises:
        GradingError: the tests could not be run at all, or a sandbox's own diff does not apply;
            says nothing about the patch.
        SandboxError: the sandbox could not be started, or was lost.
    """
    factory = sandboxes.get(sandbox) if isinstance(sandbox, str) else sandbox
    if spec is None:
        from swe_env.repos import sandbox_spec

        spec = sandbox_spec(task, limits=limits or Limits())
    if limits is not None:
        spec = replace(spec, limits=limits)
    box = factory(spec)
    try:
        found = _Findings()
        try:
            changed = _prepare(box, task, patch, found, fuzzy)
        except PatchError as error:
            if from_diff and not isinstance(error, PatchRefused):
                raise GradingError(
                    f"The sandbox's own diff does not fit its base, so nothing was graded. {error}"
                ) from error
            return _verdict(task, None, found, error=str(error))
        run = _run(box, task, changed, timeout, factory, spec)
    finally:
        box.close()
    return _verdict(task, run, found)


def grade_workspace(
    box: Sandbox, task: Task, grader: Callable[..., TestReport] = grade, **settings: Any
) -> tuple[str, TestReport]:
    """The diff of an episode's workspace and the verdict on it; a diff too large is one as well.

    Args:
        box: the episode's sandbox.
        task: the whole task.
        grader: `grade`, or what remembers its verdicts.
        settings: for the grader.
    """
    try:
        patch = box.diff()
    except PatchRefused as error:
        return "", _verdict(task, None, _Findings(), error=str(error))
    return patch, grader(task, patch, from_diff=True, **settings)


def _prepare(
    box: Sandbox, task: Task, patch: str, found: _Findings, fuzzy: bool = False
) -> list[str]:
    """Patch the workspace and make its tests the task's; the program files that changed."""
    named = patch_paths(patch)
    tests = _protected(task, named, box.files)
    before = guard.read_all(box.files, named | tests)
    rule_paths = guard.rules(box.files, named)
    expected = {path: before[path] for path in rule_paths}
    expected |= _gold_rules(box, task, rule_paths)
    applied = apply_patch(box, patch, fuzzy=fuzzy)
    if applied.fuzzy:
        found.notes.append("The patch does not apply as it stands; `patch --fuzz=5` took it.")
    surprise = set(applied.paths) - named
    if surprise:
        raise PatchRefused(
            f"The patch changes files that its headers do not name: {min(surprise)}."
        )
    after = guard.read_all(box.files, before)
    found.notes += guard.restore_rules(box.files, expected, after)
    for path in sorted(tests):
        if after[path] != before[path]:
            guard.put_back(box.files, path, before[path])
            if before[path] is not None:
                verb = "deletes" if after[path] is None else "changes"
                found.notes.append(f"The patch {verb} {path}; the task's own version was used.")
    program = sorted(named - tests - set(rule_paths))
    for path in program:
        for look in (guard.reaches_inside, guard.equals_everything):
            if sentence := look(path, before[path], after[path], task.patch):
                found.cheats.append(sentence)
    try:
        apply_patch(box, task.test_patch, what=f"The test_patch of {task.instance_id}")
    except PatchError as error:
        raise GradingError(f"{error} Validate the task: its tests are broken.") from error
    return [path for path in program if before[path] != after[path]]


def _protected(task: Task, named: set[str], files: Files) -> set[str]:
    """The task's test files and what lies beside them: the patch has no say in them."""
    ids = (*task.FAIL_TO_PASS, *task.PASS_TO_PASS)
    runner = runners.get(task.log_parser)
    listed = {path for path in runner.files(ids, _patched(task)) if guard.is_test_file(path)}
    listed |= {path for path in named - listed if guard.defines_tests(files, path, ids)}
    rules = guard.RUNNER_FILES.get(task.log_parser, frozenset())
    brought = patch_paths(task.test_patch)
    beside = guard.beside_tests(named, listed | brought)
    return brought | ((listed | beside | rules) - patch_paths(task.patch))


def _patched(task: Task) -> list[str]:
    """The files of the test patch that a test runner could be given."""
    paths = re.findall(r"^\+\+\+ b/([^\t\n]+)", task.test_patch, re.MULTILINE)
    return [path for path in dict.fromkeys(paths) if path.endswith(".py")]


def _gold_rules(box: Sandbox, task: Task, paths: list[str]) -> dict[str, bytes | None]:
    """What the gold patch makes of the files that decide how tests run, where it changes them."""
    shared = sorted(patch_paths(task.patch) & set(paths))
    if not shared:
        return {}
    state = box.snapshot()
    try:
        apply_patch(box, task.patch, what=f"The gold patch of {task.instance_id}")
        return guard.read_all(box.files, shared)
    except PatchError as error:
        raise GradingError(f"{error} Validate the task: its answer is broken.") from error
    finally:
        box.restore(state)
        state.discard()


def _run(
    box: Sandbox,
    task: Task,
    changed: list[str],
    timeout: float,
    factory: SandboxFactory,
    spec: SandboxSpec,
) -> TestRun:
    ids = (*task.FAIL_TO_PASS, *task.PASS_TO_PASS)
    named = runners.get(task.log_parser).files(ids, _patched(task))
    targets = [path for path in named if _runnable(box.files, path)]
    if ids and not targets and not set(named).isdisjoint(changed):
        error = "the patch deletes every file that the tests are in"
        return TestRun(outcomes={}, ended=False, error=error)
    if ids and not targets:
        raise GradingError(
            f"None of the test files of {task.instance_id} exists once its test_patch is applied: "
            "validate the task."
        )

    def attempt() -> TestRun:
        return run_tests(
            box,
            command=task.test_command,
            targets=targets,
            timeout=timeout,
            runner=task.log_parser,
            distrusted=[path for path in changed if not guard.is_test_tool(path)],
        )

    try:
        return attempt()
    except GradingError:
        if not changed or not _base_runs(task, timeout, factory, spec):
            raise
    # One failed start may be the machine's; a second, where the base starts, is the patch's.
    try:
        return attempt()
    except GradingError as error:
        return TestRun(outcomes={}, ended=False, error=f"the patch breaks the test runner: {error}")


def _base_runs(task: Task, timeout: float, factory: SandboxFactory, spec: SandboxSpec) -> bool:
    """Whether the tests can be started without the patch: whose fault is it?"""
    box = factory(spec)
    try:
        run_tests(
            box,
            command=task.test_command,
            targets=["--version"],
            timeout=timeout,
            runner=task.log_parser,
        )
    except GradingError:
        return False
    finally:
        box.close()
    return True


def _runnable(files: Files, path: str) -> bool:
    return ("/" not in path and "." not in path) or files.stat(path) is not None


def _verdict(task: Task, run: TestRun | None, found: _Findings, error: str = "") -> TestReport:
    """The report on a run, or on a patch that did not get as far as one."""
    outcomes = {**run.also, **run.outcomes} if run is not None else {}
    wanted = outcomes_of(task.FAIL_TO_PASS, outcomes)
    kept = outcomes_of(task.PASS_TO_PASS, outcomes)
    cheats = [*found.cheats, *(run.tampering if run is not None else ())]
    sound = run is not None and run.ended and not cheats
    unbroken = sound and all(outcome in PASSING for outcome in kept.values())
    mended = sum(outcome in PASSING for outcome in wanted.values())
    fraction = mended / len(wanted) if unbroken and wanted else 0.0
    return TestReport(
        resolved=unbroken and mended == len(wanted) > 0,
        fraction=fraction,
        fail_to_pass=wanted,
        pass_to_pass=kept,
        patch_applied=run is not None,
        tampering=tuple(map(_printable, (*found.notes, *cheats))),
        error=_printable(error or (run.error if run is not None else "")),
        seconds=run.seconds if run is not None else 0.0,
    )


def _printable(sentence: str) -> str:
    """Names of files may hold what no text can."""
    return sentence.encode("utf-8", "backslashreplace").decode()
