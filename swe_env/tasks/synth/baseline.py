"""How a package's own tests behave before any bug: which are stable, which run which line."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from swe_env.errors import TaskError
from swe_env.tasks.mutate import Candidate
from swe_env.tasks.synth.hidden import file_of
from swe_env.tasks.synth.prober import Answer, Prober

SUITE_TIMEOUT = 300.0
UNSTABLE = re.compile(r"0x[0-9a-fA-F]{4,}|\d{4}-\d\d-\d\dT?|/tmp/|object at")


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the pristine package's tests said."""

    stable: frozenset[str]
    """Tests that pass in every run, and whose ids do not change between runs."""
    durations: dict[str, float]
    calls: dict[str, int]
    """Test → calls it makes: what a bug's run is measured by, where a clock would tell machines
    apart."""
    lines: dict[str, dict[int, list[str]]]
    """File → line → tests that run it."""
    by_file: dict[str, list[str]] = field(default_factory=dict)
    """Test file → its stable tests, in order."""

    def tests_for(self, candidate: Candidate) -> list[str]:
        """Stable tests that run the candidate's line, or its function when the line is unknown."""
        lines = self.lines.get(candidate.path, {})
        exact = [test for test in lines.get(candidate.line, ()) if test in self.stable]
        if exact:
            return sorted(exact)
        body = range(candidate.first, candidate.last + 1)
        near = {test for line in body for test in lines.get(line, ()) if test in self.stable}
        return sorted(near)

    def cost(self, tests: Iterable[str]) -> float:
        """Seconds those tests take."""
        return sum(self.durations.get(test, 0.0) for test in tests)

    def work(self, tests: Iterable[str]) -> int:
        """Calls those tests make."""
        return sum(self.calls.get(test, 0) for test in tests)


def measure(probers: Sequence[Prober]) -> Baseline:
    """Run the whole suite in each prober (their hash seeds differ), once with coverage.

    Raises:
        TaskError: hardly any test passes.
    """

    def run(index: int) -> Answer:
        return probers[index].run(timeout=SUITE_TIMEOUT, cover=index == 0, warm=True)

    with ThreadPoolExecutor(len(probers)) as pool:
        answers = list(pool.map(run, range(len(probers))))
    if any(answer.died for answer in answers):
        raise TaskError(f"its tests ended by {answers[0].died or answers[-1].died}")
    passed = set.intersection(*(answer.passed() for answer in answers))
    durations = answers[-1].durations
    stable = {test for test in passed if not UNSTABLE.search(test)}
    if len(stable) < 3:
        raise TaskError(f"only {len(stable)} of its tests pass offline in its own environment")
    lines = {
        path: {int(line): [t for t in tests if t] for line, tests in by_line.items()}
        for path, by_line in answers[0].contexts.items()
    }
    by_file: dict[str, list[str]] = defaultdict(list)
    for test in answers[0].outcomes:
        if test in stable:
            by_file[file_of(test)].append(test)
    return Baseline(frozenset(stable), durations, answers[0].calls, lines, dict(by_file))
