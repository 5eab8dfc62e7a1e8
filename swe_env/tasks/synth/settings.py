"""What kind of tasks to make from a package, and how progress is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from swe_env.tasks.statement import Detail

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with a label, how many are done, and of how many (0: not known)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What kind of tasks to make; equal settings and package give equal tasks."""

    seed: int = 0
    limit: int = 100
    """Most tasks to make."""
    detail: Detail = "symptom"
    """How much a statement tells; see `swe_env.tasks.statement.write`."""
    min_lines: int = 3
    max_lines: int = 60
    """Length of the functions that get a bug, in lines."""
    single_line: bool = False
    """Only bugs that replace text within one line."""
    per_function: int = 0
    """Most tasks from one function; 0 for no limit."""
    per_operator: int = 0
    """Most tasks from one operator; 0 for no limit."""
    tests: int = 10
    """Most test functions a bug may break."""
    ignored_tests: str = ""
    """Test files that are not run, with commas between: slow ones, which every attempt would pay
    for. They stay in the checkout; ``--ignore`` in the test command leaves them out."""
    operators: str = ""
    """Names of the mutation operators to use, with commas between; empty for all."""
    bugs: int = 1
    """How many bugs a task has, each in another function."""
    alike: bool = False
    """Keep bugs that behave as an earlier one: which break the same tests of the same function, or
    show the same symptoms."""
    history: int = 0
    """How many commits of a git repository to look through for real fixes, newest first; with 0,
    bugs are made."""

    @property
    def pytest_options(self) -> tuple[str, ...]:
        """Of every run, so that ids and selection do not depend on the package's own options."""
        ignored = (f"--ignore={path}" for path in self.ignored_tests.split(",") if path)
        return ("--rootdir=.", "-o", "addopts=", "-p", "no:cacheprovider", *ignored)

    @property
    def test_command(self) -> str:
        """What runs the visible tests."""
        return " ".join(["python -m pytest", *self.pytest_options])
