"""Try a bug, or several at once: does it break tests, can they be hidden, what would a user see?"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swe_env.tasks.mutate import Candidate, apply_edits
from swe_env.tasks.synth.baseline import Baseline
from swe_env.tasks.synth.hidden import file_of, function_of, without_tests
from swe_env.tasks.synth.prober import Answer, Prober

LONGER, MORE = 10, 1_000_000
"""A bug hangs when its tests make more than so many times their own calls, and so many more. A
count and not a time, for the same tasks on every machine."""
MARGIN = 5.0
"""Seconds of processor time beyond five times the tests' own: what ends a run that would not end.
Only a bug that loops that long without many calls and then ends would be judged by the clock."""
FEW = 500
"""Test files with at most so many tests are run whole at once, not the bug's own tests first. A
count and not a time: which tests are run decides what a task holds."""
FACTS = 6
"""Of how many failures the facts are kept; of several bugs at once `MANY_FACTS`, so that each has
one among them."""
MANY_FACTS = 60


@dataclass(frozen=True, slots=True)
class Bug:
    """A bug that breaks tests, and the state with those tests hidden."""

    candidates: tuple[Candidate, ...]
    """One, or several put in at once."""
    sources: Mapping[str, tuple[str, str]]
    """Source file → text before and after the bug."""
    tests: Mapping[str, tuple[str, str]]
    """Test file → pristine text and text without the hidden tests."""
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    failures: Mapping[str, Mapping[str, Any]]
    """Test id → what its failure shows; of the first few."""
    parts: tuple[Bug, ...] = ()
    """Of several candidates: each as it was alone."""

    @property
    def candidate(self) -> Candidate:
        """The first of its candidates."""
        return self.candidates[0]

    def made_of(self, parts: tuple[Bug, ...]) -> Bug:
        """The same bug, knowing its parts."""
        return replace(self, parts=parts)


def attempt(
    candidates: tuple[Candidate, ...], prober: Prober, baseline: Baseline, *, functions: int
) -> Bug | str:
    """Try candidates, all at once, in the prober's copy, which is as before afterwards.

    Args:
        candidates: one bug, or several in places that do not overlap.
        prober: where to run.
        baseline: the pristine package.
        functions: most test functions that each of them may break.

    Returns:
        The bug, or in a word why it is discarded.
    """
    tests = sorted({test for one in candidates for test in baseline.tests_for(one)})
    if not tests:
        return "untested"
    before = {one.path: (prober.root / one.path).read_bytes() for one in candidates}
    mutated = {path: apply_all(candidates, path, data) for path, data in before.items()}
    facts = FACTS if len(candidates) == 1 else MANY_FACTS
    with changed(prober.root, mutated):
        answer = _break(tests, prober, baseline, facts)
        if isinstance(answer, str):
            return answer
        failed = sorted(answer.failed() & baseline.stable)
        reason = _unfit(answer, failed, tests, baseline, functions * len(candidates))
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
        candidates,
        {path: (data.decode(), mutated[path].decode()) for path, data in before.items()},
        hidden,
        tuple(failed),
        tuple(passing),
        {test: answer.failures[test] for test in sorted(answer.failures) if test in failed},
    )


def apply_all(candidates: Iterable[Candidate], path: str, data: bytes) -> bytes:
    """A file with all the bugs in it that are in that file."""
    edits = [edit for one in candidates if one.path == path for edit in one.edits]
    return apply_edits(data, edits)


def _break(tests: list[str], prober: Prober, baseline: Baseline, facts: int) -> Answer | str:
    """Run the candidate's tests, then the whole files of those that failed."""
    files = sorted({file_of(test) for test in tests})
    whole = [t for path in files for t in baseline.by_file[path]]
    if len(whole) > FEW or len(files) > 4:
        answer = prober.run(tests, timeout=_timeout(baseline, tests))
        failed = answer.failed() & baseline.stable
        if answer.died or _hangs(answer, tests, baseline):
            return answer.died or "timeout"
        if not failed:
            return "survived"
        files = sorted({file_of(test) for test in failed})
        whole = [t for path in files for t in baseline.by_file[path]]
    answer = prober.run(files, timeout=_timeout(baseline, whole), details=facts)
    if answer.died or _hangs(answer, answer.outcomes, baseline):
        return answer.died or "timeout"
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
    return MARGIN + 5 * baseline.cost(tests)


def _hangs(answer: Answer, tests: Iterable[str], baseline: Baseline) -> bool:
    return sum(answer.calls.values()) > LONGER * baseline.work(tests) + MORE


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
