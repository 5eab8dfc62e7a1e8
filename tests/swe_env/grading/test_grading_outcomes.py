"""`run_tests` reads every kind of outcome that pytest has."""

from __future__ import annotations

import pytest

from swe_env.grading.pytest_runner import parse_command
from swe_env.grading.runs import worst
from swe_env.types import Outcome

KINDS = """\
import unittest

import pytest


@pytest.mark.parametrize("name", ["plain", "ünï", "a::b", "with space", "[x]"])
def test_names(name):
    assert name


def test_fails():
    left = 1
    assert left == 2, "numbers differ"


@pytest.mark.skip(reason="not here")
def test_skipped():
    pass


@pytest.mark.xfail
def test_xfails():
    assert False


@pytest.mark.xfail
def test_xpasses():
    pass


@pytest.mark.xfail(strict=True)
def test_xpasses_strictly():
    pass


@pytest.fixture
def broken():
    raise RuntimeError("no set-up")


def test_setup_error(broken):
    pass


@pytest.fixture
def messy():
    yield
    raise RuntimeError("no tear-down")


def test_teardown_error(messy):
    pass


class TestOld(unittest.TestCase):
    def test_passes(self):
        self.assertEqual(1, 1)

    def test_fails(self):
        self.assertEqual(1, 2)

    def test_skips(self):
        raise unittest.SkipTest("no")

    @unittest.expectedFailure
    def test_expected(self):
        self.assertEqual(1, 2)
"""
DOCTEST = '''\
def double(x):
    """Twice.

    >>> double(2)
    4
    """
    return 2 * x


def triple(x):
    """Thrice.

    >>> triple(2)
    7
    """
    return 3 * x
'''


def test_every_outcome(make_project):
    run = make_project({"tests/test_kinds.py": KINDS}).run("tests/test_kinds.py")
    by_name = {name.partition("::")[2]: outcome for name, outcome in run.outcomes.items()}
    assert run.ended
    assert run.exit_code == 1
    assert run.tampering == ()
    parametrised = {k: v for k, v in by_name.items() if k.startswith("test_names[")}
    assert len(parametrised) == 5
    assert set(parametrised.values()) == {Outcome.PASSED}
    assert "test_names[with space]" in parametrised
    rest = {k: v for k, v in by_name.items() if k not in parametrised}
    assert rest == {
        "test_fails": Outcome.FAILED,
        "test_skipped": Outcome.SKIPPED,
        "test_xfails": Outcome.XFAIL,
        "test_xpasses": Outcome.XPASS,
        "test_xpasses_strictly": Outcome.FAILED,
        "test_setup_error": Outcome.ERROR,
        "test_teardown_error": Outcome.ERROR,
        "TestOld::test_passes": Outcome.PASSED,
        "TestOld::test_fails": Outcome.FAILED,
        "TestOld::test_skips": Outcome.SKIPPED,
        "TestOld::test_expected": Outcome.XFAIL,
    }
    text = run.details["tests/test_kinds.py::test_fails"]
    assert "numbers differ" in text
    assert "tests/test_kinds.py:13" in text


BROKEN_OFF = """\
import pathlib

import pytest

runs = pathlib.Path("runs")
runs.write_text(runs.read_text() + "x" if runs.exists() else "x")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    report = yield
    if len(runs.read_text()) < TIMES:
        raise SystemError("AST constructor recursion depth mismatch (before=120, after=28)")
    return report
"""


@pytest.mark.parametrize(("times", "ended"), [(1, True), (3, True), (4, False)])
def test_a_run_that_the_interpreter_broke_off_is_run_again(make_project, times, ended):
    run = make_project({"conftest.py": BROKEN_OFF.replace("TIMES", str(times))}).run()
    assert run.ended is ended
    assert sorted(run.outcomes.values()) == ([Outcome.PASSED] * 2 if ended else [])
    assert ended or run.error.startswith("pytest stopped with exit code 3")


PARSING = """\
import ast
import gc
import os
import threading
import time


def test_threads_parse_at_once():
    wrong = []

    def parse():
        for _ in range(40):
            try:
                ast.parse("x = [1, 2, (3, 4)]\\n" * 100)
            except SystemError as error:
                wrong.append(error)

    def pause(*_):  # where CPython 3.11 can change threads in the middle of a tree
        time.sleep(0.0001)

    gc.callbacks.append(pause)
    threads = [threading.Thread(target=parse) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.callbacks.remove(pause)
    assert not wrong


def test_a_fork_can_parse():
    begun, done = threading.Event(), threading.Event()

    def parse():
        begun.set()
        while not done.is_set():
            ast.parse("x = 1\\n" * 500)

    thread = threading.Thread(target=parse)
    thread.start()
    begun.wait()
    for _ in range(20):
        child = os.fork()
        if not child:
            ast.parse("x = 1")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    done.set()
    thread.join()
"""


def test_threads_that_parse_at_once_do_not_break_the_run_off(make_project):
    run = make_project({"tests/test_parse.py": PARSING}).run("tests/test_parse.py")
    assert run.ended, run.error
    assert set(run.outcomes.values()) == {Outcome.PASSED}, run.details


def test_doctests_are_tests(make_project):
    made = make_project({"docs_of.py": DOCTEST})
    run = made.run("docs_of.py", command="python -m pytest --doctest-modules")
    assert run.outcomes == {
        "docs_of.py::docs_of.double": Outcome.PASSED,
        "docs_of.py::docs_of.triple": Outcome.FAILED,
    }


def test_a_file_that_cannot_be_imported_is_an_error_and_others_still_run(make_project):
    run = make_project({"tests/test_bad.py": "import nowhere_to_be_found\n"}).run()
    assert run.outcomes["tests/test_bad.py"] == Outcome.ERROR
    assert "nowhere_to_be_found" in run.details["tests/test_bad.py"]
    assert run.outcomes["tests/test_calc.py::test_mul"] == Outcome.PASSED
    assert run.ended


def test_stopping_at_the_first_failure_is_switched_off(make_project):
    files = {
        "pyproject.toml": '[tool.pytest.ini_options]\naddopts = "-x"\n',
        "tests/test_aa.py": "def test_no():\n    assert False\n",
    }
    run = make_project(files).run()
    assert run.count(Outcome.PASSED) == 2


def test_a_single_id_can_be_run(project):
    run = project.run("tests/test_calc.py::test_mul")
    assert run.outcomes == {"tests/test_calc.py::test_mul": Outcome.PASSED}


def test_an_unknown_target_is_told(project):
    run = project.run("tests/test_calc.py::test_nothing")
    assert not run.ended
    assert "test_nothing" in run.error


def test_ids_do_not_depend_on_the_targets(make_project):
    made = make_project({"pyproject.toml": "[project]\n"})
    assert set(made.run("tests").outcomes) == set(made.run().outcomes)


def test_the_checkout_is_importable_however_pytest_is_called(make_project):
    made = make_project(
        {"json_like.py": "X = 1\n", "tests/test_x.py": "import json_like\ndef test_x(): pass\n"}
    )
    assert made.run("tests/test_x.py", command="pytest").outcomes == {
        "tests/test_x.py::test_x": Outcome.PASSED
    }


@pytest.mark.parametrize(
    ("command", "python", "arguments", "cwd_first", "env"),
    [
        ("python -m pytest", ("python",), (), True, {}),
        ("pytest -rA tests", ("python",), ("-rA", "tests"), False, {}),
        ("venv/bin/pytest", ("venv/bin/python",), (), False, {}),
        (
            "A=1 B='x y' python3 -W ignore -m pytest -q",
            ("python3", "-W", "ignore"),
            ("-q",),
            True,
            {"A": "1", "B": "x y"},
        ),
    ],
)
def test_commands_are_taken_apart(command, python, arguments, cwd_first, env):
    parsed = parse_command(command)
    assert (parsed.python, parsed.arguments, parsed.cwd_first) == (python, arguments, cwd_first)
    assert parsed.env == env


def test_the_worse_of_two_outcomes_wins():
    assert worst(Outcome.PASSED, Outcome.FAILED) == Outcome.FAILED
    assert worst(Outcome.ERROR, Outcome.PASSED) == Outcome.ERROR
    assert worst(Outcome.SKIPPED, Outcome.PASSED) == Outcome.SKIPPED


EXPECTED = """\
import unittest

import pytest

from calc import add


@pytest.mark.xfail(reason="soon")
def test_marked():
    assert add(1, 2) == 4


def test_called():
    if add(1, 2) != 4:
        pytest.xfail("soon")


def helper():
    pytest.xfail("soon")


def test_called_in_a_helper():
    helper()


def test_marked_while_it_runs(request):
    request.applymarker(pytest.mark.xfail(reason="soon"))
    assert add(1, 2) == 4


@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.xfail)])
def test_parameter(n):
    assert add(n, 1) == 2


class TestOld(unittest.TestCase):
    @unittest.expectedFailure
    def test_decorated(self):
        self.assertEqual(add(1, 2), 4)

    def test_called(self):
        pytest.xfail("soon")
"""


@pytest.mark.parametrize("distrusted", [(), ("calc.py",)])
def test_failures_that_the_tests_expect_count_whatever_is_distrusted(make_project, distrusted):
    run = make_project({"tests/test_expected.py": EXPECTED}).run(
        "tests/test_expected.py", distrusted=distrusted
    )
    outcomes = {name.partition("::")[2]: outcome for name, outcome in run.outcomes.items()}
    assert outcomes.pop("test_parameter[1]") == Outcome.FAILED  # the bug
    assert outcomes == dict.fromkeys(outcomes, Outcome.XFAIL)
    assert len(outcomes) == 7
    assert run.tampering == ()


def test_a_mark_from_a_conftest_counts(make_project):
    mark = "import pytest\n\n\ndef pytest_collection_modifyitems(items):\n    for item in items:\n"
    mark += "        item.add_marker(pytest.mark.xfail(strict=False))\n"
    files = {"conftest.py": mark, "tests/test_plain.py": "def test_plain():\n    assert 0\n"}
    run = make_project(files).run("tests/test_plain.py", distrusted=["calc.py"])
    assert set(run.outcomes.values()) == {Outcome.XFAIL}
    assert run.tampering == ()
