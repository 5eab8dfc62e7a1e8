"""A row, a bare mirror and a recipe: gold resolves, nothing done does not, no answer in sight.

`benchmarks/swebench_lite.py` does the same with the benchmark's own rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from swe_env.grading import grade
from swe_env.repos import sandbox_spec
from swe_env.tasks import load
from swe_env.types import Outcome, Task

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SETUP = """\
from pathlib import Path

from setuptools import setup

Path("src/pkg/_version.py").write_text("version = '1.0'\\n")
setup(name="pkg", version="1.0", package_dir={"": "src"}, packages=["pkg"])
"""
BUG = "from pkg._version import version\n\n\ndef double(x):\n    return x + 2\n"
TEST = "from pkg.mod import double\n\n\ndef test_two():\n    assert double(2) == 4\n"
HIDDEN = (
    TEST
    + """

import importlib.metadata

import pytest


@pytest.mark.parametrize("n", [3, 5], ids=["three times", "five"])
def test_double(n):
    assert double(n) == 2 * n
    assert importlib.metadata.version("pkg") == "1.0"
"""
)


@pytest.fixture
def row(tmp_path, monkeypatch) -> dict[str, object]:
    """A row about a repository that only a bare mirror has."""

    def git(*words: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        return subprocess.run(
            ["git", *identity, *words], cwd=work, check=True, capture_output=True, text=True
        ).stdout

    work = tmp_path / "work"
    (work / "src" / "pkg").mkdir(parents=True)
    (work / "tests").mkdir()
    files = {
        "setup.py": SETUP,
        ".gitignore": "_version.py\n*.egg-info\n",
        "src/pkg/__init__.py": "",
        "src/pkg/mod.py": BUG,
        "tests/test_mod.py": TEST,
    }
    for path, text in files.items():
        (work / path).write_text(text)
    git("init", "-q", "-b", "main")
    git("add", "-A")
    git("commit", "-qm", "base")
    base = git("rev-parse", "HEAD").strip()
    (work / "src/pkg/mod.py").write_text(BUG.replace("x + 2", "x * 2"))
    patch = git("diff")
    git("commit", "-qam", "the fix")
    (work / "tests/test_mod.py").write_text(HIDDEN)
    test_patch = git("diff")
    git("commit", "-qam", "its tests")
    mirrors = tmp_path / "mirrors"
    git("clone", "-q", "--bare", str(work), str(mirrors / "own__pkg.git"))
    monkeypatch.setenv("SWE_ENV_MIRRORS", str(mirrors))
    monkeypatch.setenv("SWE_ENV_CACHE", str(tmp_path / "cache"))
    return {
        "instance_id": "own__pkg-1",
        "repo": "own/pkg",
        "base_commit": base,
        "problem_statement": "double(3) is 5",
        "patch": patch,
        "test_patch": test_patch,
        "FAIL_TO_PASS": [
            "tests/test_mod.py::test_double[three",
            "tests/test_mod.py::test_double[five]",
        ],
        "PASS_TO_PASS": ["tests/test_mod.py::test_two"],
        "version": "1.0",
        "install_config": {
            "python": PYTHON,
            "install": "pip install -e .",
            "pip_packages": ["pytest==9.1.1"],
            "test_cmd": "pytest -rA",
        },
    }


def task_of(row: dict[str, object], folder: Path) -> Task:
    (folder / "rows.jsonl").write_text(json.dumps(row))
    (task,) = load(f"swerebench:{folder / 'rows.jsonl'}?environment=recipe")
    return task


@pytest.mark.network
def test_a_row_a_mirror_and_a_recipe_are_a_task(row, tmp_path):
    task = task_of({**row}, tmp_path)
    spec = sandbox_spec(task)
    log = ["git", "-C", str(spec.base), "log", "--all", "--format=%s"]
    assert subprocess.run(log, capture_output=True, text=True, check=True).stdout == "base\n"
    assert (spec.base / "src" / "pkg" / "_version.py").exists()
    gold = grade(task, task.patch, sandbox="process", spec=spec)
    assert gold.resolved, gold
    empty = grade(task, "", sandbox="process", spec=spec)
    assert not empty.resolved
    assert set(empty.fail_to_pass.values()) == {Outcome.FAILED}
    assert empty.pass_to_pass == {"tests/test_mod.py::test_two": Outcome.PASSED}
