"""A real small package becomes tasks that hold, the same every time, without the answer in them."""

from __future__ import annotations

import dataclasses
import subprocess

import pytest

from swe_env.errors import TaskError
from swe_env.repos import base
from swe_env.tasks import load
from swe_env.tasks.validate import validate

pytestmark = pytest.mark.network

MODULE = '''"""Shapes."""


def area(width, height):
    """Area of a box."""
    if width < 0 or height < 0:
        raise ValueError("negative")
    return width * height


def clamp(value, low=0, high=10):
    """Value within bounds."""
    if value < low:
        return low
    if value > high:
        return high
    return value


def never_called(a, b):
    """Nothing tests this."""
    if a:
        return b
    return a
'''
TESTS = """import random
import unittest

import pytest

from shapes import area, clamp


def test_area():
    width = 3
    assert area(width, 4) == 12


@pytest.mark.parametrize("value, wanted", [(5, 5), (0, 0), (10, 10)])
def test_inside(value, wanted):
    assert clamp(value) == wanted


def test_low():
    result = clamp(-3)
    assert result == 0


def test_negative():
    with pytest.raises(ValueError):
        area(-1, 2)


class TestHigh(unittest.TestCase):
    def test_high(self):
        self.assertEqual(clamp(11), 10)


@pytest.mark.parametrize("x", [object()], ids=lambda x: str(id(x)) + "0x7f001122")
def test_unstable_id(x):
    assert area(1, 1) == 1
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("synth")
    patch.setenv("SWE_ENV_CACHE", str(root / "cache"))
    folder = root / "shapes"
    folder.mkdir()
    (folder / "shapes.py").write_text(MODULE)
    (folder / "test_shapes.py").write_text(TESTS)
    yield folder, load(f"synth:{folder}?limit=4&detail=line")
    patch.undo()


def test_every_task_holds(made):
    _, tasks = made
    assert len(tasks) == 4
    report = validate(tasks[:2], sandbox="process", repeats=1, workers=2)
    assert [proof.problems for proof in report.proofs] == [(), ()]
    assert report.valid == 2
    assert report.tasks[0].metadata["validation"]["valid"] is True


def test_validation_finds_what_does_not_hold(made):
    _, tasks = made
    wrong = dataclasses.replace(
        tasks[0],
        FAIL_TO_PASS=(*tasks[0].FAIL_TO_PASS, "test_shapes.py::test_gone"),
    )
    report = validate([wrong], sandbox="process", repeats=1)
    assert (report.valid, report.invalid) == (0, 1)
    assert "test_gone missing" in report.proofs[0].problems[0]


def test_the_starting_state_holds_the_bug_and_no_answer(made):
    _, tasks = made
    for task in tasks:
        checkout = base(task)
        source = (checkout / "shapes.py").read_text()
        assert source != MODULE
        visible = (checkout / "test_shapes.py").read_text()
        for test in task.FAIL_TO_PASS:
            assert f"def {test.split('::')[-1].split('[')[0]}(" not in visible
        log = subprocess.run(
            ["git", "log", "-p", "--all"], cwd=checkout, capture_output=True, text=True, check=True
        )
        gone = [line[1:] for line in task.patch.splitlines() if line[:1] == "+"][1:]
        assert gone
        assert all(line not in log.stdout.replace(MODULE, "") for line in gone)


def test_ids_are_stable_and_untested_code_is_left_alone(made):
    _, tasks = made
    for task in tasks:
        assert task.metadata["function"] in ("area", "clamp")
        assert not any("0x" in test for test in task.FAIL_TO_PASS + task.PASS_TO_PASS)
        assert task.metadata["operator"] not in task.instance_id
        assert "test_" not in task.problem_statement
        assert f'File "shapes.py", line {task.metadata["line"]}' in task.problem_statement


def test_the_same_seed_gives_the_same_tasks_and_another_others(made, monkeypatch, tmp_path):
    folder, tasks = made
    assert load(f"synth:{folder}?limit=4&detail=line") == tasks  # kept
    monkeypatch.setenv("SWE_ENV_CACHE", str(tmp_path / "anew"))
    assert load(f"synth:{folder}?limit=4&detail=line") == tasks  # made anew
    assert load(f"synth:{folder}?limit=4&detail=line", seed=1) != tasks


def test_a_package_whose_tests_do_not_pass_is_one_sentence(made, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "broken.py").write_text("def f():\n    return 1\n")
    (folder / "test_broken.py").write_text("import not_there\n")
    with pytest.raises(TaskError, match="cannot be made into tasks: only 0 of its tests pass"):
        load(f"synth:{folder}")


def test_a_package_that_pytest_itself_needs_is_refused(tmp_path):
    folder = tmp_path / "pluggy"
    (folder / "pluggy").mkdir(parents=True)
    (folder / "pluggy/__init__.py").write_text("")
    with pytest.raises(TaskError, match="the answer would lie in the environment"):
        load(f"synth:{folder}")
