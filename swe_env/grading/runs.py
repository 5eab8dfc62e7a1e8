"""`TestRun`, what one run of the tests said, and `Runner`, what knows how to make one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from swe_env.grading.log_parsers import PARSERS
from swe_env.plugins import Registry
from swe_env.sandbox.base import Sandbox
from swe_env.types import Outcome

PASSING = frozenset({Outcome.PASSED, Outcome.XFAIL})
"""The outcomes that count as a pass."""

_WORST_FIRST = (
    Outcome.ERROR,
    Outcome.FAILED,
    Outcome.MISSING,
    Outcome.XPASS,
    Outcome.SKIPPED,
    Outcome.XFAIL,
    Outcome.PASSED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TestRun:
    """What one run of the tests said."""

    __test__ = False  # pytest: not a test class

    outcomes: dict[str, str]
    """Test id → outcome (a name of `Outcome`); a file that could not be collected has its own
    path as id."""
    also: dict[str, str] = field(default_factory=dict)
    """Other names under which a benchmark's row may know a test (its description) → outcome."""
    details: dict[str, str] = field(default_factory=dict)
    """Id of a test that failed → the last lines of its traceback, short."""
    durations: dict[str, float] = field(default_factory=dict)
    """Test id → seconds, setup and teardown included."""
    ended: bool = True
    """The run came to its own end and its exit code agrees with what it reported."""
    error: str = ""
    """Why it did not, in one sentence ("timed out after 60 s"), or empty."""
    output: str = ""
    """What it printed; for people, never read for outcomes where the runner has a channel."""
    exit_code: int = 0
    seconds: float = 0.0
    """Wall time of the tests' process."""
    tampering: tuple[str, ...] = ()
    """What the run did to its own reporting, one sentence each."""

    def outcome(self, test_id: str) -> str:
        """The test's outcome; a test that did not report is `Outcome.MISSING`."""
        return self.outcomes.get(test_id, Outcome.MISSING)

    def count(self, outcome: str) -> int:
        """How many tests had that outcome."""
        return sum(1 for found in self.outcomes.values() if found == outcome)

    @property
    def failed(self) -> tuple[str, ...]:
        """Ids of the tests that failed or erred, in the order they ran."""
        bad = (Outcome.FAILED, Outcome.ERROR, Outcome.XPASS)
        return tuple(test_id for test_id, found in self.outcomes.items() if found in bad)


class Runner(Protocol):
    """Runs the tests of one kind of test command and reads what they said."""

    def run(
        self,
        sandbox: Sandbox,
        *,
        command: str,
        targets: Sequence[str],
        timeout: float,
        distrusted: Collection[str] = (),
    ) -> TestRun:
        """Run `command` on `targets` (paths or test ids; none means all).

        Args:
            sandbox: where to run; the checkout is its workspace.
            command: the task's test command, as a shell would split it.
            targets: paths or test ids to append to the command; empty for all tests.
            timeout: seconds after which everything is killed.
            distrusted: paths in the workspace whose code has no business in the reporting: what
                a patch changed. Code of theirs found there is named in `TestRun.tampering`.

        Raises:
            GradingError: the tests could not be started at all (no interpreter, no pytest).
        """
        ...

    def files(self, test_ids: Sequence[str], patched: Sequence[str] = ()) -> list[str]:
        """The files or modules to run for these test ids, without repetition, in order.

        Args:
            test_ids: ids as the task's lists have them.
            patched: test files that the task's `test_patch` touches, for runners whose ids do not
                say where a test lies.
        """
        ...


runners: Registry[Runner] = Registry(
    "runners",
    {
        "pytest": "swe_env.grading.pytest_runner:runner",
        "unittest": "swe_env.grading.unit_runner:unittest_runner",
        "django": "swe_env.grading.unit_runner:django_runner",
        "sympy": "swe_env.grading.unit_runner:sympy_runner",
        # The last resort, by SWE-bench's names: what is printed can be forged.
        **{name: f"swe_env.grading.log_runner:{name}" for name in PARSERS},
    },
)
"""Test runners by the name a task's `log_parser` gives."""


def worst(first: str, second: str) -> str:
    """The worse of two outcomes of the same test."""
    return min(first, second, key=_WORST_FIRST.index)


def run_tests(
    sandbox: Sandbox,
    *,
    command: str = "python -m pytest",
    targets: Sequence[str] = (),
    timeout: float = 300.0,
    runner: str = "pytest",
    distrusted: Collection[str] = (),
) -> TestRun:
    """Run tests in a sandbox; see `Runner.run`.

    Raises:
        ConfigError: no runner has that name, or `command` is not one it can run.
        GradingError: the tests could not be started at all.
    """
    return runners.get(runner).run(
        sandbox, command=command, targets=targets, timeout=timeout, distrusted=distrusted
    )
