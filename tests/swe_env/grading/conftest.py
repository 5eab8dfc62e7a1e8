from __future__ import annotations

import difflib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from swe_env import sandbox as sandboxes
from swe_env.grading import TestRun, grade, run_tests
from swe_env.sandbox import SandboxSpec
from swe_env.types import Task, TestReport

CALC = '''\
def add(a, b):
    """The sum."""
    return a - b


def mul(a, b):
    return a * b
'''
TEST_CALC = """\
from calc import mul


def test_mul():
    assert mul(2, 3) == 6


def test_mul_by_zero():
    assert mul(2, 0) == 0
"""
TEST_HIDDEN = """\
from calc import add


def test_add():
    assert add(1, 2) == 3


def test_add_text():
    assert add("é", "ü") == "éü"
"""
FILES = {
    "calc.py": CALC,
    "tests/test_calc.py": TEST_CALC,
    "pyproject.toml": '[project]\nname = "calc"\n\n[tool.pytest.ini_options]\naddopts = "-q"\n',
}
FAIL_TO_PASS = ("tests/test_hidden.py::test_add", "tests/test_hidden.py::test_add_text")
PASS_TO_PASS = ("tests/test_calc.py::test_mul", "tests/test_calc.py::test_mul_by_zero")
FIXED = {"calc.py": CALC.replace("a - b", "a + b")}


def diff(old: dict[str, str], new: dict[str, str | None]) -> str:
    """A unified diff from `old` to `old` changed by `new` (None deletes a file)."""
    parts = []
    for path, after in new.items():
        before = old.get(path)
        parts += difflib.unified_diff(
            (before or "").splitlines(keepends=True),
            (after or "").splitlines(keepends=True),
            "/dev/null" if before is None else f"a/{path}",
            "/dev/null" if after is None else f"b/{path}",
        )
    return "".join(parts)


@dataclass(frozen=True)
class Project:
    """A small repository with a bug, and its task."""

    spec: SandboxSpec
    task: Task
    files: dict[str, str]
    sandbox: str = "process"

    def patch(self, changes: dict[str, str | None]) -> str:
        return diff(self.files, changes)

    def grade(self, changes: dict[str, str | None] | str, timeout: float = 60.0) -> TestReport:
        patch = changes if isinstance(changes, str) else self.patch(changes)
        return grade(self.task, patch, sandbox=self.sandbox, spec=self.spec, timeout=timeout)

    def run(self, *targets: str, command: str = "python -m pytest", **settings: object) -> TestRun:
        box = sandboxes.get(self.sandbox)(self.spec)
        try:
            return run_tests(box, command=command, targets=targets, timeout=60, **settings)
        finally:
            box.close()


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[..., Project]:
    def make(
        files: dict[str, str] | None = None,
        hidden: str = TEST_HIDDEN,
        fail_to_pass: tuple[str, ...] = FAIL_TO_PASS,
        pass_to_pass: tuple[str, ...] = PASS_TO_PASS,
        **task: object,
    ) -> Project:
        made = FILES | (files or {})
        root = tmp_path / "base"
        for path, text in made.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run([*git, "init", "-q"], check=True)
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-qm", "base"], check=True)
        settings = {
            "instance_id": "calc-1",
            "repo": "example/calc",
            "base_commit": "HEAD",
            "problem_statement": "add subtracts",
            "patch": diff(made, dict(FIXED)),
            "test_patch": diff(made, {"tests/test_hidden.py": hidden}),
            "FAIL_TO_PASS": fail_to_pass,
            "PASS_TO_PASS": pass_to_pass,
        } | task
        env = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": "{workdir}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        return Project(SandboxSpec(base=root, env=env), Task(**settings), made)

    return make


@pytest.fixture
def project(make_project: Callable[..., Project]) -> Project:
    return make_project()
