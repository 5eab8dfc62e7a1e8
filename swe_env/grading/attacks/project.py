"""The small project that the attempts are made on: a bug, its visible and its hidden tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from swe_env.grading.attacks.attempt import Attempt, Content
from swe_env.grading.verdict import grade
from swe_env.sandbox.base import SandboxFactory, SandboxSpec
from swe_env.types import Task, TestReport

CALC = '''\
def add(a, b):
    """The sum."""
    return a - b


def mul(a, b):
    return a * b
'''
FIXED = CALC.replace("a - b", "a + b")
HIDDEN = """\
import unittest

import pytest
from check import same

from calc import add


def test_add():
    assert add(1, 2) == 3


def test_add_by_helper():
    same(add(2, 2), 4)


def test_refuses():
    with pytest.raises(TypeError):
        add(1, "1" if add(1, 1) == 2 else 1)


class TestAdd(unittest.TestCase):
    def test_negative(self):
        self.assertEqual(add(-1, -2), -3)
"""
_HIDDEN = "tests/test_hidden.py"
BASE: dict[str, Content] = {
    "calc.py": CALC,
    "kept/__init__.py": "",
    "kept/words.py": 'GREETING = "hello"\r\n',
    "tests/check.py": "def same(a, b):\n    if a != b:\n        raise ValueError((a, b))\n",
    "tests/test_calc.py": (
        "from calc import mul\n\n\ndef test_mul():\n    assert mul(2, 3) == 6\n\n\n"
        "def test_mul_by_zero():\n    assert mul(2, 0) == 0\n"
    ),
    "pyproject.toml": '[project]\nname = "calc"\n\n[tool.pytest.ini_options]\naddopts = "-q"\n',
    "setup.cfg": "[metadata]\nname = calc\n",
}
FAIL_TO_PASS = tuple(
    f"{_HIDDEN}::{name}"
    for name in ("test_add", "test_add_by_helper", "test_refuses", "TestAdd::test_negative")
)
PASS_TO_PASS = ("tests/test_calc.py::test_mul", "tests/test_calc.py::test_mul_by_zero")


@dataclass(frozen=True, slots=True)
class Project:
    """The project as a checkout on this machine, and its task."""

    base: Path
    task: Task
    spec: SandboxSpec

    def patch(self, attempt: Attempt) -> str:
        """The attempt's patch."""
        if attempt.patch:
            return attempt.patch if isinstance(attempt.patch, str) else attempt.patch()
        return make_patch(self.base, attempt.changes)

    def grade(
        self, attempt: Attempt, sandbox: SandboxFactory | str, timeout: float = 60.0
    ) -> TestReport:
        """The verdict on the attempt."""
        return grade(
            self.task, self.patch(attempt), sandbox=sandbox, spec=self.spec, timeout=timeout
        )


def make_project(folder: Path) -> Project:
    """Make the project in an empty folder; its tests run with this very Python."""
    base = folder / "base"
    write(base, BASE)
    _git(base, "init", "-q")
    _git(base, "add", "-A")
    _git(base, "commit", "-qm", "base")
    task = Task(
        instance_id="calc-1",
        repo="example/calc",
        base_commit="HEAD",
        problem_statement="add subtracts",
        patch=make_patch(base, {"calc.py": FIXED}),
        test_patch=make_patch(base, {_HIDDEN: HIDDEN}),
        FAIL_TO_PASS=FAIL_TO_PASS,
        PASS_TO_PASS=PASS_TO_PASS,
    )
    env = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": "{workdir}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    places = (Path(sys.base_prefix), Path(sys.prefix))
    binds = {str(path): path for path in dict.fromkeys(places) if not path.is_relative_to("/usr")}
    return Project(base, task, SandboxSpec(base=base, env=env, binds=binds))


def make_patch(base: Path, changes: Mapping[str, Content]) -> str:
    """Git's patch from the checkout `base` to `base` with these changes, ignored files too."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        shutil.copytree(base, copy, symlinks=True)
        write(copy, changes)
        _git(copy, "add", "-A", "-f")
        return _git(copy, "diff", "--cached", "--binary", "--find-renames")


def write(folder: Path, changes: Mapping[str, Content]) -> None:
    """Make the files; a path becomes a link, None deletes, whatever is in the way goes."""
    for name, content in changes.items():
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        if content is None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            path.symlink_to(content)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)


def _git(folder: Path, *arguments: str) -> str:
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "core.autocrlf=false"]
    command = ["git", *who, *arguments]
    ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, check=True)
    return ran.stdout.decode("utf-8", "surrogateescape")
