"""Try one bug: does it break tests, can they be hidden, what would a user see?"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swe_env.tasks.mutate import Candidate
from swe_env.tasks.synth.baseline import Baseline
from swe_env.tasks.synth.hidden import file_of, function_of, without_tests
from swe_env.tasks.synth.prober import Answer, Prober

MARGIN = 5.0
"""Seconds beyond three times the tests' own time after which a bug counts as a hang."""
FEW = 500
"""Test files with at most so many tests are run whole at once, not the bug's own tests first. A
count and not a time: which tests are run decides what a task holds."""
FACTS = 6
"""Of how many failures the facts are kept."""


@dataclass(frozen=True, slots=True)
class Bug:
    """A bug that breaks tests, and the state with those tests hidden."""

    candidate: Candidate
    sources: Mapping[str, tuple[str, str]]
    """Source file → text before and after the bug."""
    tests: Mapping[str, tuple[str, str]]
    """Test file → pristine text and text without the hidden tests."""
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    failures: tuple[Mapping[str, Any], ...]


def attempt(
    candidate: Candidate, prober: Prober, baseline: Baseline, *, functions: int
) -> Bug | str:
    """Try a candidate in the prober's copy, which is as before afterwards.

    Args:
        candidate: the bug.
        prober: where to run.
        baseline: the pristine package.
        functions: most test functions that it may break.

    Returns:
        The bug, or in a word why it is discarded.
    """
    tests = baseline.tests_for(candidate)
    if not tests:
        return "untested"
    data = (prober.root / candidate.path).read_bytes()
    mutated = candidate.apply(data)
    with changed(prober.root, {candidate.path: mutated}):
        answer = _break(tests, prober, baseline)
        if isinstance(answer, str):
            return answer
        failed = sorted(answer.failed() & baseline.stable)
        reason = _unfit(answer, failed, tests, baseline, functions)
        if reason:
            return reason
        relevant = sorted({file_of(test) for test in answer.outcomes} & set(baseline.by_file))
        hidden = _hide(prober.root, failed)
        if hidden is None:
            return "inseparable"
        expected = {t for path in relevant for t in baseline.by_file[path]}
        passing = sorted(answer.passed() & expected)
        visible = {t for t in passing if not _removed(t, failed)}
        after = {path: new.encode() for path, (_, new) in hidden.items()}
        with changed(prober.root, after):
            state = prober.run(relevant, timeout=_timeout(baseline, expected))
        if state.died or state.failed() or not visible <= state.passed():
            return "inseparable"
    return Bug(
        candidate,
        {candidate.path: (data.decode(), mutated.decode())},
        hidden,
        tuple(failed),
        tuple(passing),
        tuple(answer.failures[test] for test in sorted(answer.failures) if test in failed),
    )


def _break(tests: list[str], prober: Prober, baseline: Baseline) -> Answer | str:
    """Run the candidate's tests, then the whole files of those that failed."""
    files = sorted({file_of(test) for test in tests})
    whole = [t for path in files for t in baseline.by_file[path]]
    if len(whole) > FEW or len(files) > 4:
        answer = prober.run(tests, timeout=_timeout(baseline, tests))
        failed = answer.failed() & baseline.stable
        if answer.died:
            return answer.died
        if not failed:
            return "survived"
        files = sorted({file_of(test) for test in failed})
        whole = [t for path in files for t in baseline.by_file[path]]
    answer = prober.run(files, timeout=_timeout(baseline, whole), details=FACTS)
    if answer.died:
        return answer.died
    return answer if answer.failed() & baseline.stable else "survived"


def _unfit(
    answer: Answer, failed: list[str], tests: list[str], baseline: Baseline, functions: int
) -> str:
    ran = {file_of(test) for test in answer.outcomes}
    if any(t not in answer.outcomes for path in ran for t in baseline.by_file.get(path, ())):
        return "collection"
    if any(t not in answer.outcomes for t in tests if file_of(t) in ran):
        return "collection"
    if answer.code not in (0, 1):
        return "collection"
    broken = {(file_of(test), function_of(test)) for test in failed}
    third = max(1, len(baseline.stable) // 3)
    return "dull" if len(failed) > third or len(broken) > functions else ""


def _hide(root: Path, failed: Iterable[str]) -> dict[str, tuple[str, str]] | None:
    """Test files without the failing functions: path → (pristine, without)."""
    hidden = {}
    for path in sorted({file_of(test) for test in failed}):
        try:
            pristine = (root / path).read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            return None
        functions = {function_of(test) for test in failed if file_of(test) == path}
        without = without_tests(pristine, functions)
        if without is None:
            return None
        hidden[path] = (pristine, without)
    return hidden


def _removed(test: str, failed: Iterable[str]) -> bool:
    gone = {(file_of(f), function_of(f)) for f in failed}
    return (file_of(test), function_of(test)) in gone


def _timeout(baseline: Baseline, tests: Iterable[str]) -> float:
    return MARGIN + 3 * baseline.cost(tests)


@contextmanager
def changed(root: Path, files: Mapping[str, bytes]) -> Iterator[None]:
    """Give files of a copy other contents for a while."""
    before = {name: ((root / name).read_bytes(), (root / name).stat()) for name in files}
    try:
        for name, data in files.items():
            (root / name).write_bytes(data)
            # Another time than the pristine file's, whose compiled form may be kept.
            later = before[name][1].st_mtime_ns + 10 * 10**9
            os.utime(root / name, ns=(later, later))
        yield
    finally:
        for name, (data, stat) in before.items():
            (root / name).write_bytes(data)
            os.utime(root / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
