"""A real small package becomes tasks that hold, the same every time, without the answer in them."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swe_env.env import SWEEnv
from swe_env.errors import ConfigError, TaskError
from swe_env.repos import base
from swe_env.tasks import load
from swe_env.tasks.mutate import Candidate, Edit
from swe_env.tasks.synth.baseline import measure
from swe_env.tasks.synth.package import prepare
from swe_env.tasks.synth.prober import Prober
from swe_env.tasks.synth.trial import Bug, attempt, changed
from swe_env.tasks.validate import validate
from swe_env.types import Source

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
def made(tmp_path_factory, cached):
    folder = tmp_path_factory.mktemp("synth") / "shapes"
    folder.mkdir()
    (folder / "shapes.py").write_text(MODULE)
    (folder / "test_shapes.py").write_text(TESTS)
    return folder, load(f"synth:{folder}?limit=4&detail=line")


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


@pytest.fixture
def trials(monkeypatch):
    """What was tried, in the order in which it was begun."""
    begun = []

    def counted(candidates, *arguments, **options):
        begun.append(candidates)
        return attempt(candidates, *arguments, **options)

    monkeypatch.setattr("swe_env.tasks.synth.collect.attempt", counted)
    return begun


def test_a_stopped_generation_tries_nothing_twice(made, trials):
    folder, _ = made
    spec = f"synth:{folder}?limit=5&detail=line"

    def stop(label, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(spec, seed=2, progress=stop)
    before = len(trials)
    assert before >= 2
    tasks = load(spec, seed=2)
    assert len(tasks) == 5
    assert len(trials) > before
    assert load(f"{spec}&per_operator=9", seed=2) == tasks  # other settings, the same trials
    assert len(trials) == len(set(trials))


def test_a_damaged_memory_of_trials_is_told_and_not_used(made, trials, cached, caplog):
    folder, _ = made
    spec = f"synth:{folder}?limit=2&detail=line"
    wanted = load(spec, seed=4)
    for file in (cached / "tried").iterdir():
        file.write_bytes(b"no database" * 1000)
    trials.clear()
    assert load(f"{spec}&per_operator=9", seed=4) == wanted
    assert trials
    assert "bugs tried before are tried again" in caplog.text


WIDE = (
    MODULE
    + """

def words(text, most=3):
    parts = text.split()
    if len(parts) > most:
        parts = parts[:most]
    return [part.lower() for part in parts]


def total(prices, discount=0):
    amount = 0
    for price in prices:
        amount += price
    return amount - discount
"""
)
WIDE_TESTS = """
import pytest

from shapes import area, clamp, total, words


def test_area():
    assert area(3, 4) == 12


def test_negative():
    with pytest.raises(ValueError):
        area(-1, 2)


@pytest.mark.parametrize("value, wanted", [(5, 5), (0, 0), (10, 10)])
def test_inside(value, wanted):
    assert clamp(value) == wanted


def test_low():
    assert clamp(-3) == 0


def test_high():
    assert clamp(11) == 10


def test_words():
    assert words("A b") == ["a", "b"]


def test_most():
    assert words("A b c d") == ["a", "b", "c"]


def test_total():
    assert total([1, 2]) == 3


def test_discount():
    assert total([1, 2], 1) == 2


def test_nothing():
    assert total([]) == 0
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory, cached):
    folder = tmp_path_factory.mktemp("wide") / "shapes"
    folder.mkdir()
    (folder / "shapes.py").write_text(WIDE)
    (folder / "test_shapes.py").write_text(WIDE_TESTS)
    return folder


def test_several_bugs_at_once_are_all_needed_and_all_told(wide):
    (task,) = load(f"synth:{wide}?limit=1&bugs=2&operators=removed_body,removed_guard,comparison")
    bugs = task.metadata["bugs"]
    functions = [bug["function"] for bug in bugs]
    assert len(set(functions)) == 2
    told = task.problem_statement.split("\n\n")
    assert told[0] == "2 things are wrong."
    for number, name in enumerate(functions, start=1):
        assert any(part.startswith(f"{number}. `{name}(") for part in told)
    # With either of them put right alone, hidden tests still fail.
    source = (base(task) / "shapes.py").read_text()
    assert source.count("pass\n") == sum(bug["operator"] == "removed_body" for bug in bugs)
    for name in functions:
        good, bad = (ast.unparse(function(text, name)) for text in (WIDE, source))
        assert good != bad
        assert any(name in call for call in hidden_calls(task, name))


def function(source, name):
    tree = ast.parse(source)
    return next(node for node in tree.body if getattr(node, "name", "") == name)


def hidden_calls(task, name):
    added = [line for line in task.test_patch.splitlines() if line.startswith("+")]
    return [line for line in added if f"{name}(" in line]


def test_no_two_tasks_behave_alike(wide):
    only = "operators=comparison,removed_body,dropped_return_value"
    tasks = load(f"synth:{wide}?limit=50&{only}")
    seen = [(task.metadata["function"], task.FAIL_TO_PASS) for task in tasks]
    assert len(seen) == len(set(seen))
    kept = load(f"synth:{wide}?limit=50&alike=true&{only}")
    assert len(kept) > len(tasks)
    assert {task.instance_id for task in tasks} < {task.instance_id for task in kept}
    assert {task.metadata["operator"] for task in kept} <= set(only[10:].split(","))
    assert "removed_body" in {task.metadata["operator"] for task in kept}


def test_an_unknown_operator_is_refused(wide):
    with pytest.raises(ConfigError, match="Did you mean 'comparison'"):
        load(f"synth:{wide}?operators=comparisons")


def test_a_hang_is_told_by_calls_and_not_by_the_clock(wide):
    """A slow run with few calls is kept, a quick run with many is a hang, on any machine."""
    package = prepare(Source(kind="folder", location=str(wide)))
    data = WIDE.encode()
    start = data.index(b"return amount")
    line = data.count(b"\n", 0, start) + 1
    with Prober(package.checkout, package.environment) as prober:
        baseline = measure([prober])

        def tried(text):
            edit = Edit(start, start + len(b"return amount - discount"), text)
            bug = Candidate("shapes.py", "own", "total", line - 4, line, line, (edit,))
            return attempt((bug,), prober, baseline, functions=10)

        assert isinstance(tried(b"return __import__('time').sleep(0.2)"), Bug)
        assert tried(b"return len([abs(n) for n in range(1_500_000)])") == "timeout"
        endless = data.replace(b"return amount", b"while True: pass\n    return amount")
        with changed(prober.root, {"shapes.py": endless}):
            assert prober.run(timeout=1).died == "timeout"
        assert not prober.run(timeout=9).failed()


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


def test_ignored_test_files_are_in_no_list_and_no_run(tmp_path, cached):
    folder = tmp_path / "shapes"
    folder.mkdir()
    (folder / "shapes.py").write_text(WIDE)
    (folder / "test_shapes.py").write_text(WIDE_TESTS)
    (folder / "test_slow.py").write_text("def test_slow():\n    assert True\n")
    only = "limit=1&operators=comparison"
    for ignored, command in (("", "no:cacheprovider"), ("test_slow.py", "--ignore=test_slow.py")):
        (task,) = load(f"synth:{folder}?{only}&ignored_tests={ignored}")
        assert task.test_command.endswith(f" {command}")
        assert run_tests(task) == (0 if ignored else 1)


def run_tests(task):
    """How often the slow test is named when the visible tests are run."""
    env = SWEEnv(tasks=[task], sandbox="process")
    env.reset(seed=0)
    said = env.step({"tool": "bash", "arguments": {"command": f"{task.test_command} -v"}})[0]
    env.close()
    return said["text"].count("test_slow.py::test_slow")


ENDLESS = """
import os, pathlib


def test_endless():
    pathlib.Path({pid!r}).write_text(str(os.getpid()))
    while True:
        pass
"""
ASKING = """
import pathlib, sys
from swe_env.tasks.synth.prober import Prober

checkout, environment = map(pathlib.Path, sys.argv[1:])
with Prober(checkout, environment) as prober:
    prober.run(timeout=300)
"""


def test_a_killed_generation_leaves_no_test_running(wide, tmp_path):
    environment = prepare(Source(kind="folder", location=str(wide))).environment
    checkout, pid = tmp_path / "endless", tmp_path / "pid"
    checkout.mkdir()
    (checkout / "test_endless.py").write_text(ENDLESS.format(pid=str(pid)))
    asking = subprocess.Popen([sys.executable, "-c", ASKING, str(checkout), str(environment)])
    running = wait_for(lambda: pid.exists() and pid.read_text())
    asking.kill()
    asking.wait()
    wait_for(lambda: not Path("/proc", running).exists())


def wait_for(met, seconds=30):
    """What `met` gives as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := met():
            return found
        time.sleep(0.05)
    raise AssertionError("It did not happen.")
